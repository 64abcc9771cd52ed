-- settle: held -> settled. Charges what was used and gives back the rest.
--
-- KEYS    see _books.lua
-- ARGV    1-3 see _books.lua, 4 id, 5 epoch, 6 day, 7 month, 8 since_ms (as granted),
--         9 tokens used
-- Returns settled    charged (also when the store had lost the reservation: it is then
--                    charged to the windows that held it, if they are still open)
--         late       a sweep had ended it: the difference is corrected, once
--         duplicate  it was settled or released before: nothing changed
--
-- Invariants: what was held is free again; requests are never given back.

return finish('settled', tonumber(ARGV[9]))
