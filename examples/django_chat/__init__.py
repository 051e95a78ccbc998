"""A chat in Django: users log in, answers stream, and each answer is saved, whole or stopped.

The page at / stops its answer when it is left; the one at /reload/ continues its answer after a reload.

    python -m examples.django_chat migrate
    python -m examples.django_chat createsuperuser
    python -m examples.django_chat runserver

    gunicorn -k gthread --threads 100 examples.django_chat.wsgi
    uvicorn examples.django_chat.asgi:application

    python -m examples.django_chat test examples.django_chat

The endpoint is that of the environment (examples/endpoint.py), the database a file of SQLite: DATABASE, or
django_chat.sqlite3. With REDIS_URL the answers of /reload/ are kept in Redis, for any number of processes.

    models.py         a question, its answer, and how the answer ended
    views.py          the page, the answer as a stream, and the saved answer
    reload_views.py   the same with a log, which keeps an answer that is read later
    templates/        the two pages and the login
    tests.py          the tests, with Django's test clients
"""
