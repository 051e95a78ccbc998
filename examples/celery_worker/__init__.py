"""A Celery worker requests answers, and a Flask application streams them: two programs with Redis between them.

    celery -A examples.celery_worker.tasks worker --concurrency 4
    gunicorn -k gthread --threads 100 'examples.celery_worker.app:create_app()'

    curl -d '{"prompt": "Hello"}' -H 'Content-Type: application/json' http://127.0.0.1:8000/ask
    curl -N http://127.0.0.1:8000/answers/KEY
    curl -X DELETE http://127.0.0.1:8000/answers/KEY

REDIS_URL is the Redis of the broker and of the log (default: redis://127.0.0.1:6379/0). As in examples/flask_chat, the
worker sends its requests to an upstream of its own, or to the endpoint of OPENAI_API_KEY and OPENAI_BASE_URL.

    tasks.py   the task, which writes an answer into the log
    app.py     the views, which read answers from the log, from any point and as often as needed

Readers and web servers may come and go: with the header Last-Event-ID a reader continues where it was.
"""
