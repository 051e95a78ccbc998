"""A chat page on Flask: the answer streams in, and Stop aborts the upstream.

    python -m examples.flask_chat                         # with an upstream of its own
    OPENAI_API_KEY=... python -m examples.flask_chat      # with OpenAI's
    gunicorn -k gthread --threads 100 'examples.flask_chat.app:create_app()'

OPENAI_BASE_URL selects another endpoint with the same protocol, OPENAI_MODEL the model.

With REDIS_URL (or, in a single process, KEEP_ANSWERS=1) an answer outlives its reader: the page can be reloaded, and if
a worker is killed another one repeats its request. An answer without a reader is aborted after 30 seconds.

    REDIS_URL=redis://127.0.0.1:6379 gunicorn --workers 2 --threads 100 'examples.flask_chat.app:create_app()'

(The panel of the page counts the requests of the worker that it is connected to.)

    app.py        the views, which relay the streams
    answers.py    the log in which answers are kept
    upstream.py   the requests to the upstream, and their counts
    scripted.py   the upstream that is used if the environment selects none
    static/       the page, which needs neither npm nor a build; relay.js of the package reads streams (../browser.md)
"""
