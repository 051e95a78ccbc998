"""The SDKs of OpenAI and Anthropic in Flask and Django: the answer streams to the browser, and who leaves aborts it.

    pip install '.[flask,django]' openai anthropic
    python -m examples.sdk_chat                                             # asks an upstream of its own
    gunicorn -k gthread --threads 100 examples.sdk_chat.flask_app:app
    uvicorn examples.sdk_chat.django_app:asgi

    curl -N 'http://127.0.0.1:5000/openai?prompt=Hello'
    curl -N 'http://127.0.0.1:5000/anthropic?prompt=Hello'

The SDKs read OPENAI_API_KEY, OPENAI_BASE_URL, ANTHROPIC_API_KEY and ANTHROPIC_BASE_URL.

    providers.py     the SDKs' clients, and how an answer becomes text
    flask_app.py     the view in Flask
    django_app.py    the view in Django, under WSGI and ASGI
    __main__.py      the Flask application on an upstream of its own
"""
