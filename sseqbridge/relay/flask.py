"""Relays as Flask responses. Needs the extra `flask`. All code runs in the view's thread, without shared state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import flask

from sseqbridge._exceptions import SSEError

from ._disconnect import disconnect_flag
from ._ending import Ending, OnEnd, RelayEnd
from ._frames import Frames, relay
from ._options import SYNC_WITHOUT, describe, relay_options
from ._response import Refusal, error_response, event_stream_headers, read_refusal
from ._upstream import Upstream

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment
    from typing_extensions import Unpack

    from sseqbridge._streams.reader import ItemReader

    from ._options import RelayOptions, SyncRelayKeywords

__all__ = ["register_error_handlers", "stream_response"]


def stream_response(
    stream: Any, *, headers: Mapping[str, str] | None = None, **options: Unpack[SyncRelayKeywords]
) -> flask.Response:
    """Return a response that streams to the client; a disconnect aborts the upstream.

        @app.post("/chat")
        def chat():
            return stream_response(request_sse(url, headers, data))

    `stream` and the options are those of `relay.frames`. `map`, and an iterable, run in the request's context,
    `on_end` in an app context of its own. `headers` are added to those of an event stream. If the upstream's status is
    not 200, the response is that of the option `refusal`.

    A function in place of the stream is called when the response starts, in the request's context, and not at all for
    HEAD. The application's error handlers are called with its exceptions.

    Raises UsageError for arguments that cannot work.
    """
    with Upstream(stream) as upstream:
        checked = relay_options("stream_response", options, without=SYNC_WITHOUT)
        checked.check_synchronous()
        merged = event_stream_headers(headers)
        environ = flask.request.environ if flask.has_request_context() else None
        frames = relay(upstream, checked, environ, ending=_FlaskEnding)
        response = _RelayResponse(frames, checked, headers, merged)
        if not upstream.is_function:
            # A refusal is known already: the response has its status before the application's own functions see it.
            response.open_upstream()
        return response


describe(stream_response, without=SYNC_WITHOUT)


def register_error_handlers(app: flask.Flask | flask.Blueprint) -> None:
    """Answer an error of the library in a view with a response for the client, instead of 500.

        register_error_handlers(app)

    `app` is the Flask application, or a Blueprint.

    504 for a time limit, 502 for each other error of an upstream, with the JSON object of a refusal; a warning is
    logged. The upstream's StatusError is answered like a refusal. An error that the client's disconnect causes
    (RequestAbortedError) is not logged. CallbackError, which the application's own code causes, is raised on.

    Raises nothing itself.
    """
    app.register_error_handler(SSEError, _handle)


def _handle(error: SSEError) -> flask.Response:
    refusal = error_response(error)
    if refusal is None:
        raise error
    return flask.Response(refusal.body, refusal.status, refusal.headers)


class _FlaskEnding(Ending):
    """Calls `on_end` in an app context of its own, so that extensions release what it used, such as db.session."""

    def __init__(self, on_end: OnEnd | None) -> None:
        super().__init__(on_end)
        app: Any = flask.current_app
        self._app: flask.Flask | None = app._get_current_object() if flask.has_app_context() else None

    def run(self, on_end: OnEnd, end: RelayEnd) -> None:
        if self._app is None:
            super().run(on_end, end)
        else:
            with self._app.app_context():
                super().run(on_end, end)


class _RelayResponse(flask.Response):
    """A relay, or the response for its upstream's refusal. It opens the upstream when the web server starts it."""

    def __init__(
        self,
        frames: Frames,
        options: RelayOptions,
        added: Mapping[str, str] | None,
        merged: Mapping[str, str],
    ) -> None:
        super().__init__(frames, 200, merged)
        self._frames = frames
        self._options = options
        self._added = added
        self._merged = merged

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] == "HEAD":
            self._frames.discard()
        elif not self._options.early:
            try:
                self.open_upstream()
            except Exception as exc:
                if not flask.has_app_context():
                    raise
                return _response_to(exc)(environ, start_response)
        return super().__call__(environ, start_response)

    def open_upstream(self) -> None:
        """Wait for the upstream's headers. Become the response for a refusal if it is one."""
        refused = self._frames.open_upstream()
        if refused is not None and self.response is self._frames:
            try:
                self._become(self._refusal(refused))
            except BaseException:
                self._frames.close()
                raise

    def _refusal(self, refused: ItemReader[Any]) -> Refusal:
        environ = flask.request.environ if flask.has_request_context() else None
        disconnected = disconnect_flag(environ, self._options.probe)
        return read_refusal(refused, self._options.refusal, self._added, disconnected)

    def _become(self, refusal: Refusal) -> None:
        self.response = [refusal.body]
        self.status_code = refusal.status
        for name in self._merged:
            del self.headers[name]
        self.headers.update(refusal.headers)
        self.call_on_close(self._frames.close)


def _response_to(error: Exception) -> flask.Response:
    """Return the application's response to an error after its view, as Flask makes it for an error in the view."""
    app = flask.current_app
    try:
        return app.finalize_request(app.handle_user_exception(error), from_error_handler=True)
    except Exception as exc:
        return app.handle_exception(exc)
