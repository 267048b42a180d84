"""A bundle for clients that speak openpi's protocol: a websocket each, one inference at a time, first come first served.

The loop only moves bytes; reading a request, inferring and writing the reply happen in one worker thread, so pings are
answered meanwhile. Whatever goes wrong with a request is a text, and the end of that connection (code 1011), as openpi's
clients expect it; the others are not touched. Pages of a browser are not served: they say an Origin.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import logging
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from websockets.asyncio.server import Request, Response, Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from edgevla.clock import NS_PER_MS, NS_PER_S
from edgevla.errors import ConfigError, EdgeVLAError, WireError
from edgevla.serve.hosted import Hosted
from edgevla.serve.metrics import Metrics
from edgevla.serve.openpi.address import WsAddress
from edgevla.serve.openpi.hosting import Adaptor
from edgevla.serve.openpi.packing import pack, unpack

DEADLINE_S = 30.0
"""After which a request is answered with an error; openpi's clients wait for ever, so somebody has to."""
SEND_S, HANDSHAKE_S, LOOK_S = 10.0, 5.0, 0.05
MOST_CLIENTS = 64
FAILED, GOING = 1011, 1001
DRAINING = "this server is going down; ask again when it is back"

Note = Callable[..., None]


class OpenpiServer:
    """hosted: warmed up. note: a line of the log. deadline_s: see `DEADLINE_S`."""

    def __init__(
        self,
        hosted: Hosted,
        adaptor: Adaptor,
        note: Note = lambda *_, **__: None,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self.metrics = Metrics()
        self._hosted, self._adaptor, self._note, self._deadline_s = hosted, adaptor, note, deadline_s
        self._metadata = pack({"edgevla": {**adaptor.about(), "name": hosted.name, "sha256": hosted.sha256}})
        self._worker = ThreadPoolExecutor(1, "inference")
        self._n_clients = self._n_waiting = self._n_asked = 0
        self._is_draining = False

    async def run(
        self, address: WsAddress, is_asked_to_end: Callable[[], bool], ready: Callable[[str], None]
    ) -> None:
        """Until it is asked to end; what runs then is finished. ready: is told where it really listens.

        Raises:
            ConfigError: the address is taken.
        """
        logging.getLogger("websockets").setLevel(logging.CRITICAL)  # strangers' handshakes are no news
        try:
            server = await self._listen(address)
        except OSError as error:
            raise ConfigError(
                f"--bind {address}: {error.strerror}; is another server running there?"
            ) from error
        try:
            ready(str(WsAddress(address.host, server.sockets[0].getsockname()[1])))
            while not is_asked_to_end():
                await asyncio.sleep(LOOK_S)
            self._is_draining = True
            self._note("drain")
            while self._n_waiting:
                await asyncio.sleep(LOOK_S)
        finally:
            server.close()
            await server.wait_closed()
            self._worker.shutdown(wait=False, cancel_futures=True)

    async def _listen(self, address: WsAddress) -> Server:
        return await serve(
            self._client,
            address.host,
            address.port,
            process_request=self._on_http,
            origins=[None],
            compression=None,
            max_size=self._adaptor.most_bytes,
            max_queue=1,
            open_timeout=HANDSHAKE_S,
            close_timeout=2.0,
            server_header=None,
        )

    def _on_http(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if self._is_draining or self._n_clients >= MOST_CLIENTS:
            return connection.respond(
                http.HTTPStatus.SERVICE_UNAVAILABLE, f"{MOST_CLIENTS} clients are served\n"
            )
        return None

    async def _client(self, connection: ServerConnection) -> None:
        host, port = connection.remote_address[:2]
        client = f"{host}:{port}"
        self._count(+1)
        self._note("join", robot=client, session="openpi", policy=self._hosted.name)
        try:
            await _send(connection, self._metadata)
            async for message in connection:
                if not await self._answer(connection, client, message):
                    break
        except (ConnectionClosed, TimeoutError, asyncio.TimeoutError):
            pass  # it has gone, or reads nothing
        finally:
            self._count(-1)
            self._note("left", robot=client, session="openpi")

    def _count(self, n: int) -> None:
        self._n_clients += n
        self.metrics.set("robots", self._n_clients)

    async def _answer(self, connection: ServerConnection, client: str, message: str | bytes) -> bool:
        """Whether the conversation goes on."""
        self._n_waiting += 1
        self.metrics.set("waiting", self._n_waiting)
        try:
            reply = await self._reply(message)
            await _send(connection, reply)
        except EdgeVLAError as error:
            await self._fail(connection, client, str(error))
            return False
        finally:
            self._n_waiting -= 1
            self.metrics.set("waiting", self._n_waiting)
        self.metrics.count("requests_total", outcome="answered")
        self._note("answered", session=client, policy=self._hosted.name)
        return True

    async def _fail(self, connection: ServerConnection, client: str, sentence: str) -> None:
        self.metrics.count("requests_total", outcome="failed")
        self._note("refused", session=client, text=sentence)
        await _send(connection, sentence)
        await connection.close(FAILED, "the request failed; the text before says why")

    async def _reply(self, message: str | bytes) -> bytes:
        """
        Raises:
            EdgeVLAError: there is none, in one sentence.
        """
        if self._is_draining:
            raise WireError(DRAINING)
        if isinstance(message, str):
            raise WireError("the request is a text frame; expected msgpack in a binary one", "type")
        self._n_asked += 1
        work = asyncio.get_running_loop().run_in_executor(
            self._worker, self._infer, message, self._n_asked, time.monotonic_ns()
        )
        try:
            return await asyncio.wait_for(work, self._deadline_s)
        except (TimeoutError, asyncio.TimeoutError):
            others = self._n_waiting - 1
            raise WireError(
                f"the request was not answered within {self._deadline_s:g} s; {others} others wait as well",
                "timeout",
            ) from None

    def _infer(self, message: bytes, number: int, arrived_ns: int) -> bytes:
        """In the worker: from bytes to bytes.

        Raises:
            EdgeVLAError: as `_reply`.
        """
        began = time.monotonic_ns()
        try:
            observation, came = self._adaptor.observation(unpack(message))
            started = time.monotonic_ns()
            actions = self._hosted.policy.infer(observation, chunk_seq=number).actions
        except EdgeVLAError:
            raise
        except (
            Exception
        ) as error:  # one client's request must not end the others' server; the traceback is the log's
            traceback.print_exc()
            raise WireError(f"the inference failed: {type(error).__name__}") from error
        done = time.monotonic_ns()
        self.metrics.observe("wait_seconds", (began - arrived_ns) / NS_PER_S, policy=self._hosted.name)
        self.metrics.observe("inference_seconds", (done - started) / NS_PER_S, policy=self._hosted.name)
        return pack(
            self._adaptor.reply(actions, came, (done - started) / NS_PER_MS, (done - arrived_ns) / NS_PER_MS)
        )


async def _send(connection: ServerConnection, message: str | bytes) -> None:
    """
    Raises:
        ConnectionClosed, TimeoutError: the client has gone, or reads nothing.
    """
    try:
        await asyncio.wait_for(connection.send(message), SEND_S)
    except (TimeoutError, asyncio.TimeoutError):
        with contextlib.suppress(ConnectionClosed):
            connection.transport.abort()
        raise
