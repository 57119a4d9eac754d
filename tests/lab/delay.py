"""Holds the packets of netfilter queue 0 of this network namespace for a fixed time.

    delay.py MILLISECONDS

Stands in for netem, which many kernels are built without. Speaks nfnetlink_queue over a netlink socket with nothing but
the standard library: only the packets' ids come here (copy mode "meta"), each is accepted after its time.
"""

import collections
import errno
import select
import socket
import struct
import sys
import time

NETLINK_NETFILTER = 12
NFNL_SUBSYS_QUEUE = 3
NFQNL_MSG_PACKET, NFQNL_MSG_VERDICT, NFQNL_MSG_CONFIG = 0, 1, 2
NFQA_PACKET_HDR, NFQA_VERDICT_HDR = 1, 2
NFQA_CFG_CMD, NFQA_CFG_PARAMS, NFQA_CFG_QUEUE_MAXLEN = 1, 2, 3
NFQNL_CFG_CMD_BIND = 1
NFQNL_COPY_META = 1
NF_ACCEPT = 1
SOL_NETLINK, NETLINK_NO_ENOBUFS = 270, 5


def message(kind, attribute, payload, flags=1):
    """One netlink message for queue 0 with one attribute."""
    body = struct.pack("=BBH", socket.AF_UNSPEC, 0, 0)
    body += struct.pack("=HH", 4 + len(payload), attribute) + payload + b"\0" * (-len(payload) % 4)
    return struct.pack("=IHHII", 16 + len(body), (NFNL_SUBSYS_QUEUE << 8) | kind, flags, 0, 0) + body


def ask(netlink, attribute, payload):
    """A configuration message; raises if the kernel refuses it."""
    netlink.send(message(NFQNL_MSG_CONFIG, attribute, payload, flags=1 | 4))  # request, acknowledge
    error = struct.unpack_from("=i", netlink.recv(65536), 16)[0]
    if error:
        raise OSError(-error, "nfnetlink_queue refuses the configuration")


def packet_ids(data):
    """The packet ids in what was received: one datagram may hold several messages."""
    at = 0
    while at + 16 <= len(data):
        length, kind = struct.unpack_from("=IH", data, at)
        if length < 16:
            return
        if kind == (NFNL_SUBSYS_QUEUE << 8) | NFQNL_MSG_PACKET:
            field, end = at + 20, min(at + length, len(data))
            while field + 4 <= end:
                size, attribute = struct.unpack_from("=HH", data, field)
                if attribute & 0x3FFF == NFQA_PACKET_HDR:
                    yield struct.unpack_from("!I", data, field + 4)[0]
                if size < 4:
                    break
                field += size + (-size % 4)
        at += length + (-length % 4)


def main():
    hold = int(sys.argv[1]) / 1000
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    netlink.bind((0, 0))
    netlink.setsockopt(SOL_NETLINK, NETLINK_NO_ENOBUFS, 1)
    netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    ask(netlink, NFQA_CFG_CMD, struct.pack("!BBH", NFQNL_CFG_CMD_BIND, 0, 0))
    ask(netlink, NFQA_CFG_PARAMS, struct.pack("!IB", 0, NFQNL_COPY_META))
    ask(netlink, NFQA_CFG_QUEUE_MAXLEN, struct.pack("!I", 20000))
    netlink.setblocking(False)
    print("ready", flush=True)
    waiting = collections.deque()
    while True:
        timeout = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        if select.select([netlink], [], [], timeout)[0]:
            due = time.monotonic() + hold
            try:
                while True:
                    waiting.extend((due, number) for number in packet_ids(netlink.recv(65536)))
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.ENOBUFS):
                    raise
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            number = waiting.popleft()[1]
            verdict = struct.pack("!IHHII", 0, 0, 0, NF_ACCEPT, number)[8:]
            netlink.send(message(NFQNL_MSG_VERDICT, NFQA_VERDICT_HDR, verdict))


main()
