from dataclasses import dataclass, field

from gateway.providers.transport.pool import Origin, Pool

HERE = Origin("http", "a", 80)
THERE = Origin("http", "b", 80)


@dataclass(eq=False)
class Idler:
    origin: Origin = HERE
    idle_since: float = 0.0
    aborted: bool = field(default=False, init=False)

    def abort(self) -> None:
        self.aborted = True


def make_pool(expiry: float = 4.0, limit: int = 10) -> Pool[Idler]:
    return Pool(expiry=expiry, limit=limit)


def test_pool_hands_out_the_last_one_first() -> None:
    pool = make_pool()
    first, second = Idler(), Idler()
    pool.put(first, 0.0)
    pool.put(second, 0.0)
    assert [pool.take(HERE, 0.0) for _ in range(3)] == [second, first, None]
    assert len(pool) == 0


def test_pool_keeps_origins_apart() -> None:
    pool = make_pool()
    pool.put(Idler(THERE), 0.0)
    assert pool.take(HERE, 0.0) is None
    assert pool.take(THERE, 0.0) is not None


def test_pool_closes_what_was_idle_for_too_long_when_it_is_asked_for() -> None:
    pool = make_pool(expiry=4.0)
    young, old = Idler(), Idler()
    pool.put(young, 10.0)
    assert pool.take(HERE, 14.0) is young
    pool.put(old, 10.0)
    assert pool.take(HERE, 14.1) is None
    assert old.aborted
    assert not young.aborted


def test_pool_closes_one_too_many_when_it_is_full() -> None:
    pool = make_pool(limit=1)
    kept, refused = Idler(), Idler(THERE)
    pool.put(kept, 0.0)
    pool.put(refused, 0.0)
    assert refused.aborted
    assert len(pool) == 1
    assert pool.take(HERE, 0.0) is kept


def test_pool_drops_a_connection_from_the_middle_when_it_ended() -> None:
    pool = make_pool()
    idlers = [Idler(), Idler(), Idler()]
    for idler in idlers:
        pool.put(idler, 0.0)
    pool.forget(idlers[1])
    pool.forget(idlers[1])
    pool.forget(Idler(THERE))
    assert len(pool) == 2
    assert [pool.take(HERE, 0.0) for _ in range(2)] == [idlers[2], idlers[0]]


def test_pool_closes_only_the_old_when_they_expire() -> None:
    pool = make_pool(expiry=4.0)
    old, young = Idler(), Idler()
    pool.put(old, 0.0)
    pool.put(young, 3.0)
    pool.expire(5.0)
    assert (old.aborted, young.aborted) == (True, False)
    assert len(pool) == 1


def test_pool_closes_all_and_late_comers_when_it_is_closed() -> None:
    pool = make_pool()
    idlers = [Idler(), Idler(THERE)]
    for idler in idlers:
        pool.put(idler, 1e9)
    pool.close()
    assert all(idler.aborted for idler in idlers)
    late = Idler()
    pool.put(late, 1e9)
    assert late.aborted
    assert len(pool) == 0
