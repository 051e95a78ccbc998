"""The URLs."""

from __future__ import annotations

from django.contrib.auth.views import LoginView
from django.urls import include, path

from . import views

urlpatterns = [
    path("", views.page),
    path("answers", views.ask),
    path("answers/<uuid:key>", views.saved),
    path("reload/", include("examples.django_chat.reload_views")),
    path("accounts/login/", LoginView.as_view(), name="login"),
    path("static/<path:path>", views.static),
]
