"""Answers that a Celery worker asks for, and a Flask application streams: two programs, with a Redis between them.

    celery -A examples.celery_worker.tasks worker --concurrency 4
    gunicorn --worker-class gthread --threads 100 'examples.celery_worker.app:create_app()'

    curl -d '{"prompt": "Tell me something long"}' -H 'Content-Type: application/json' http://127.0.0.1:8000/ask
    curl -N http://127.0.0.1:8000/answers/THE_KEY
    curl -X DELETE http://127.0.0.1:8000/answers/THE_KEY

REDIS_URL names the Redis, of the broker and of the log (redis://127.0.0.1:6379/0 unless it says otherwise). What the
worker asks is as in examples/flask_chat: an upstream of its own, or what OPENAI_API_KEY and OPENAI_BASE_URL name.

    tasks.py   the task: it writes an answer into the log
    app.py     the views: they read it from there, from any point, as often as anybody likes

A reader may come and go, and the web server with it: with the header Last-Event-ID it goes on where it was.
"""
