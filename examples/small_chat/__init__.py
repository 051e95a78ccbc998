"""A chat of one page and three views, in Flask and in FastAPI. Answers survive a reload; Stop ends them everywhere.

    python -m examples.small_chat                                                       # Flask
    gunicorn -k gthread --threads 100 examples.small_chat.flask_app:app
    uvicorn examples.small_chat.fastapi_app:app                                         # FastAPI

The endpoint is that of the environment (examples/endpoint.py). With REDIS_URL the answers are kept in Redis, for any
number of processes, otherwise in the memory of one.

    flask_app.py     the views in Flask
    fastapi_app.py   the views in FastAPI
    answers.py       the log in which answers are kept
    page.html        the page, which reads answers with relay.js of the package (../browser.md)
    static/          its style
"""
