-- sweep: held -> expired or released, for every reservation whose lease has run out;
-- tombstones that are old enough are dropped.
--
-- KEYS    see _books.lua
-- ARGV    1-3 see _books.lua
-- Returns swept  expired, released: at most 100 together; ask again after that many
--
-- Invariants: a reservation without the dispatch mark is charged nothing; one with it
-- its prompt and what its last renewal allowed.

sweep()
find_stale()
commit()
return answer('swept')
