"""A chat page on Flask: the answer streams in, and Stop aborts the upstream.

    python -m examples.flask_chat                         # on an upstream of its own
    OPENAI_API_KEY=... python -m examples.flask_chat      # on OpenAI's
    gunicorn --worker-class gthread --threads 100 'examples.flask_chat.app:create_app()'

OPENAI_BASE_URL names another endpoint that speaks the same protocol, OPENAI_MODEL the model.

With REDIS_URL (or, for a single process, KEEP_ANSWERS=1) an answer outlives its reader: reload the page and go on
reading, or kill the worker that asks, and another one does. An answer that nobody reads is aborted after 30 seconds.

    REDIS_URL=redis://127.0.0.1:6379 gunicorn --workers 2 --threads 100 'examples.flask_chat.app:create_app()'

(The page's panel counts the requests of the worker that it is connected to.)

    app.py        the views: where the streams are relayed
    answers.py    the log that answers are kept in
    upstream.py   the requests to the upstream, and how many are open
    scripted.py   the upstream that is used where the environment names none
    static/       the page; ways_in.js has the two ways in that browsers have

The page's POST goes through @microsoft/fetch-event-source. Where npm has installed that in the
working directory (`npm install --no-save @microsoft/fetch-event-source`) it is used, else a
stand-in of a few lines with the same interface, so that the page needs no npm and no build.
"""
