-- release: held -> released. Gives everything back: nothing reached a provider.
--
-- KEYS    see _books.lua
-- ARGV    1-3 see _books.lua, 4 id, 5 epoch, 6 day, 7 month, 8 since_ms (as granted)
-- Returns released   nothing is charged
--         late       a sweep had ended it: what that charged is given back, once
--         duplicate  it was settled or released before: nothing changed
--
-- Invariants: what was held is free again; requests are never given back.

return finish('released', 0)
