"""The URLs."""

from __future__ import annotations

from django.contrib.auth.views import LoginView
from django.urls import path

from . import views

urlpatterns = [
    path("", views.page),
    path("answers", views.ask),
    path("answers/<int:pk>", views.saved),
    path("accounts/login/", LoginView.as_view(), name="login"),
    path("relay.js", views.static, {"name": "relay.js"}),
    path("page.css", views.static, {"name": "page.css"}),
]
