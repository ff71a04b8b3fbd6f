"""The router's tcp door: loopback only, no user, no shared memory."""

from __future__ import annotations

import socket

from tests.router_process import PlayedProcess, RouterProcess, Talker
from zbroker import ids
from zbroker.wire.layout import NO_PEER, PEER, Api, pack_request

WORKER = ids.worker_number(0)


def test_tcp_clients_have_no_user_and_no_shared_memory() -> None:
    config = {"network": {"tcp_listen": "tcp://127.0.0.1:*", "tcp_unauthenticated_loopback": True}}
    with RouterProcess(config) as router, PlayedProcess(router, WORKER) as worker:
        with open("/proc/net/tcp") as file:
            inodes = {fields[9]: fields[1] for fields in map(str.split, file) if fields[3] == "0A"}
        (address,) = [inodes[inode] for inode in router.sockets() if inode in inodes]
        host, port = address.split(":")
        assert host == "0100007F", "on loopback and nowhere else"
        with Talker(f"tcp://127.0.0.1:{int(port, 16)}") as client:
            assert not client.hello().shared_memory
            client.send([pack_request(Api.PRODUCE, 1, WORKER), b"x"])
            assert PEER.unpack(worker.take()[1]) == (NO_PEER, NO_PEER, NO_PEER)


def test_a_tcp_port_that_is_taken_is_a_mistake_in_the_settings() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        router = RouterProcess({"network": {"tcp_listen": endpoint, "tcp_unauthenticated_loopback": True}})
        try:
            assert router.process.wait(20) == 2
            assert "network.tcp_listen" in router.log
        finally:
            router.__exit__(None, None, None)
