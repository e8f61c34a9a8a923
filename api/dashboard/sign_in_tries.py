"""How often somebody may try to sign in: counted in Redis before each try, forgotten after one that succeeds.

Tries are held up longer each time, by address and by e-mail from one address; by e-mail from anywhere for ten seconds
at most, so that strangers who guess from many addresses delay a person's new browser and lock nobody out. A browser
in which the person has signed in before has a cookie that says so, and is held up by its own tries alone. https://owasp.org/www-community/Slow_Down_Online_Guessing_Attacks_with_Device_Cookies
"""

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network, ip_address

from redis.asyncio import Redis

_IPV6_PREFIX_BITS = 64
_FORGOTTEN_AFTER_S = 24 * 3600

# KEYS: counters; ARGV: the time to forget, then for each counter the free tries and the longest wait, in seconds.
# Answers 0 and counts the try for all, or the seconds to wait and counts nothing. A counter holds (tries, not before).
_TAKE = """
local now = tonumber(redis.call('TIME')[1])
local wait = 0
local counts = {}
for i, key in ipairs(KEYS) do
    local held = redis.call('HMGET', key, 'tries', 'not_before')
    counts[i] = tonumber(held[1] or '0')
    wait = math.max(wait, tonumber(held[2] or '0') - now)
end
if wait > 0 then
    return wait
end
for i, key in ipairs(KEYS) do
    local free, longest = tonumber(ARGV[2 * i]), tonumber(ARGV[2 * i + 1])
    local tries = counts[i] + 1
    local hold = 0
    if tries >= free then
        hold = math.min(15 * 2 ^ math.min(tries - free, 20), longest)
    end
    redis.call('HSET', key, 'tries', tries, 'not_before', now + hold)
    redis.call('EXPIRE', key, ARGV[1])
end
return 0
"""


@dataclass(frozen=True, slots=True)
class _Limit:
    """After `free` tries the next has to wait: 15 s, then twice as long each time, up to `longest_s`."""

    free: int
    longest_s: int


_BY_EMAIL_AND_ADDRESS = _Limit(5, 900)
_BY_ADDRESS = _Limit(30, 900)
_BY_EMAIL = _Limit(50, 10)
_BY_DEVICE = _Limit(5, 900)


@dataclass(frozen=True, slots=True)
class Try:
    """A try that may be made, and the counters that it is in."""

    wait_s: int
    """0, or how long to wait; then the try must not be made, and is counted nowhere."""
    counters: tuple[str, ...]


def network_of(address: str) -> str:
    """Return what stands for one place: an IPv4 address, or the 64 bits of an IPv6 address that a provider gives."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(IPv6Network((int(parsed), _IPV6_PREFIX_BITS), strict=False))
    return str(parsed)


class SignInTries:
    """Counts tries. Redis holds digests, neither e-mails nor addresses. Every call may raise what Redis raises."""

    def __init__(self, redis: "Redis", hash_secret: bytes) -> None:
        self._redis = redis
        self._take = redis.register_script(_TAKE)
        self._key = hmac.digest(hash_secret, b"payouts sign-in tries\0", "sha256")

    async def take(self, email: str, address: str, device: str) -> Try:
        """Count a try from an address, and from a browser that has this cookie."""
        if self._is_device_of(email, device):
            limits = {self._name("device", device): _BY_DEVICE}
        else:
            limits = {
                self._name("pair", email, address): _BY_EMAIL_AND_ADDRESS,
                self._name("address", address): _BY_ADDRESS,
                self._name("email", email): _BY_EMAIL,
            }
        arguments = [number for limit in limits.values() for number in (limit.free, limit.longest_s)]
        wait_s = await self._take(keys=list(limits), args=[_FORGOTTEN_AFTER_S, *arguments])
        return Try(int(wait_s), tuple(limits))

    async def succeed(self, made: Try) -> None:
        """Take a try that succeeded out of its counters, and forget those before it by the same person."""
        own, *shared = made.counters
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.delete(own)
            for counter in shared:
                pipeline.hincrby(counter, "tries", -1)
                pipeline.expire(counter, _FORGOTTEN_AFTER_S)
            await pipeline.execute()

    def make_device(self, email: str) -> str:
        """Make the cookie of a browser in which somebody has signed in."""
        random = secrets.token_urlsafe(16)
        return f"{random}.{self._sign(email, random)}"

    def _is_device_of(self, email: str, device: str) -> bool:
        random, _, signature = device.partition(".")
        return hmac.compare_digest(signature.encode(), self._sign(email, random).encode())

    def _sign(self, email: str, random: str) -> str:
        return self._digest("device of", email, random)

    def _name(self, kind: str, *parts: str) -> str:
        return f"payouts:sign-in:{kind}:{self._digest(kind, *parts)}"

    def _digest(self, *parts: str) -> str:
        return hmac.new(self._key, "\0".join(parts).encode(), hashlib.sha256).hexdigest()
