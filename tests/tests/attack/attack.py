# What an attacker inside a pod has at hand: packets made byte by byte, a TCP of its own, and system calls that
# Python has no name for. Prepended to every script of the tests that attack.
import ctypes, os, select, socket, struct, subprocess, sys, time

SYN, RST, PSH, ACK = 0x02, 0x04, 0x08, 0x10
MARK, FREEBIND, TRANSPARENT, FASTOPEN_CONNECT, QDISC_BYPASS = 36, 15, 19, 30, 20
MPTCP = 262
libc = ctypes.CDLL(None, use_errno=True)


def packed(ip):
    return socket.inet_pton(socket.AF_INET6 if ':' in ip else socket.AF_INET, ip)


def checksum(data):
    data += b'\0' * (len(data) % 2)
    total = sum(struct.unpack('!%dH' % (len(data) // 2), data))
    while total > 0xffff:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff


def tcp(src, dst, sport, dport, flags, seq=1000, ack=0, payload=b''):
    head = struct.pack('!HHIIBBHHH', sport, dport, seq, ack, 5 << 4, flags, 0xffff, 0, 0)
    length = len(head) + len(payload)
    pseudo = packed(src) + packed(dst)
    pseudo += struct.pack('!IHBB', length, 0, 0, 6) if ':' in src else struct.pack('!BBH', 0, 6, length)
    total = checksum(pseudo + head + payload)
    return head[:16] + struct.pack('!H', total) + head[18:] + payload


# `between`: IPv6 extension headers, as pairs of header number and body.
def ip(src, dst, segment, between=()):
    if ':' in src:
        chain, follows = segment, 6
        for number, body in reversed(between):
            chain, follows = bytes([follows]) + body + chain, number
        return struct.pack('!IHBB', 6 << 28, len(chain), follows, 64) + packed(src) + packed(dst) + chain
    head = struct.pack('!BBHHHBBH', 0x45, 0, 20 + len(segment), 1, 0, 64, 6, 0) + packed(src) + packed(dst)
    return head[:10] + struct.pack('!H', checksum(head)) + head[12:] + segment


def raw(packet, mark=None, cmsg_mark=None):
    v6 = packet[0] >> 4 == 6
    s = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_RAW, 255)
    if mark is not None:
        s.setsockopt(socket.SOL_SOCKET, MARK, mark)
    to = socket.inet_ntop(socket.AF_INET6, packet[24:40]) if v6 else socket.inet_ntop(socket.AF_INET, packet[16:20])
    control = [] if cmsg_mark is None else [(socket.SOL_SOCKET, MARK, struct.pack('I', cmsg_mark))]
    s.sendmsg([packet], control, 0, (to, 0))
    s.close()


# Frames on eth0, past the stack; with `bypass` past tc too. `claims`: the protocol that the kernel is told.
class Wire:
    def __init__(self, near, bypass, claims=None, tag=b''):
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        if bypass:
            self.socket.setsockopt(263, QDISC_BYPASS, 1)
        self.claims, self.tag = claims, tag
        self.socket.bind(('eth0', 3))
        # A datagram to anywhere makes the kernel learn the gateway's link address.
        family = socket.AF_INET6 if ':' in near else socket.AF_INET
        socket.socket(family, socket.SOCK_DGRAM).sendto(b'', (near, 9))
        for _ in range(1000):
            words = subprocess.run(['ip', 'neigh', 'show', 'dev', 'eth0'], capture_output=True, text=True).stdout.split()
            if 'lladdr' in words:
                break
            time.sleep(0.005)
        self.gateway = bytes.fromhex(words[words.index('lladdr') + 1].replace(':', ''))
        self.own = b'\2\0\0\0\0\1'

    def send(self, packet):
        kind = 0x86dd if packet[0] >> 4 == 6 else 0x0800
        frame = self.gateway + self.own + self.tag + struct.pack('!H', kind) + packet
        self.socket.sendto(frame, ('eth0', kind if self.claims is None else self.claims))

    # The next TCP segment of one IPv4 connection: flags, sequence number, payload.
    def segment(self, sport, dport, until):
        while True:
            left = until - time.monotonic()
            if left <= 0 or not select.select([self.socket], [], [], left)[0]:
                return None
            frame, (_, kind, way, _, _) = self.socket.recvfrom(65536)
            if kind != 0x0800 or way == 4 or frame[23] != 6:
                continue
            body = frame[14 + (frame[14] & 15) * 4:]
            length = struct.unpack('!H', frame[16:18])[0] - (frame[14] & 15) * 4
            source, target, seq, _ = struct.unpack('!HHII', body[:12])
            if (source, target) == (dport, sport):
                return body[13], seq, body[(body[12] >> 4) * 4:length]

    # A TCP client without the kernel's: what the server answered to `payload`, `None` if there was no handshake.
    def converse(self, src, dst, sport, dport, payload, limit=1.0):
        until = time.monotonic() + limit
        self.send(ip(src, dst, tcp(src, dst, sport, dport, SYN)))
        while True:
            got = self.segment(sport, dport, until)
            if got is None or got[0] & RST:
                return None
            if got[0] & (SYN | ACK) == SYN | ACK:
                break
        expect = got[1] + 1 & 0xffffffff
        self.send(ip(src, dst, tcp(src, dst, sport, dport, PSH | ACK, 1001, expect, payload)))
        answer = b''
        while True:
            got = self.segment(sport, dport, until)
            if got is None or got[0] & RST:
                return answer
            answer += got[2]


# What one connection came to.
def talk(s, to, payload):
    try:
        s.settimeout(1)
        s.connect(to)
        s.sendall(payload)
        return s.recv(100)
    except OSError as error:
        return error


def disconnect(s):
    libc.connect(s.fileno(), bytes(28), 28)


# connect() through io_uring; the result as the kernel gives it.
def uring_connect(s, host, port):
    params = ctypes.create_string_buffer(120)
    ring = libc.syscall(425, 4, params)
    if ring < 0:
        return -ctypes.get_errno()
    import mmap
    word = lambda at: struct.unpack_from('I', params, at)[0]
    entries, cq_entries = word(0), word(4)
    rings = mmap.mmap(ring, max(word(40 + 24) + entries * 4, word(80 + 20) + cq_entries * 16), offset=0)
    cqs = mmap.mmap(ring, word(80 + 20) + cq_entries * 16, offset=0x8000000)
    sqes = mmap.mmap(ring, entries * 64, offset=0x10000000)
    address = struct.pack('=H', socket.AF_INET) + struct.pack('!H', port) + packed(host) + bytes(8)
    kept = ctypes.create_string_buffer(address, 16)
    sqes[:64] = struct.pack('=BBHiQQIIQ', 16, 0, 0, s.fileno(), 16, ctypes.addressof(kept), 0, 0, 1) + bytes(24)
    rings[word(40 + 24):word(40 + 24) + 4] = struct.pack('I', 0)
    rings[word(44):word(44) + 4] = struct.pack('I', 1)
    if libc.syscall(426, ring, 1, 1, 1, None, 0) < 0:
        return -ctypes.get_errno()
    at = word(80 + 20)
    return struct.unpack_from('=Qi', cqs, at)[1]
