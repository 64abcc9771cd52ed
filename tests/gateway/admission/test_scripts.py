"""The scripts as text, and commands on the wire."""

import re

import pytest

from gateway.admission.scripts import Arguments, Move, command, load

# All known to Redis 6.2; a new one needs a look at its history first.
COMMANDS = {
    *("DEL", "EXPIREAT", "GET", "SET", "TIME"),
    *("HDEL", "HGET", "HMGET", "HSET", "HSETNX"),
    *("ZADD", "ZCARD", "ZRANGE", "ZRANGEBYSCORE", "ZREM"),
}


@pytest.mark.parametrize("move", Move)
def test_scripts_call_only_commands_of_redis_6_2(move: Move) -> None:
    source = load(move).source
    called = re.findall(r"redis\.call\('(\w+)'", source)
    assert called
    assert len(called) == source.count("redis.call(")
    assert set(called) <= COMMANDS


@pytest.mark.parametrize("move", Move)
def test_scripts_tell_keys_arguments_answers_and_invariants(move: Move) -> None:
    own = load(move).source[load(move).source.index(f"-- {move}: ") :]
    header = own[: own.index("\n\n")]
    for word in ("KEYS", "ARGV", "Returns", "Invariants"):
        assert word in header
    assert max(len(line) for line in own.splitlines()) <= 88


def test_a_command_is_counted_and_measured_in_bytes() -> None:
    assert command("SET", "é", 1) == b"*3\r\n$3\r\nSET\r\n$2\r\n\xc3\xa9\r\n$1\r\n1\r\n"


def test_a_script_call_counts_keys_and_all_arguments() -> None:
    encoded = load(Move.SWEEP).call(Arguments.of(("k1", "k2"), 7), ("x",))
    count, *words = encoded.split(b"\r\n")
    assert count == b"*7"
    assert words[1] == b"EVALSHA"
    assert words[5::2] == [b"2", b"k1", b"k2", b"7", b"x"]
