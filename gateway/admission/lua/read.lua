-- read: one consistent read-out of the books, after a sweep.
--
-- KEYS    see _books.lua
-- ARGV    1-3 see _books.lua
-- Returns read  day and month (used, held, limit, ends: Unix s), requests, tokens,
--               concurrency, in_use, and the reservations (at most 100, those first
--               whose lease ends first)
--
-- Invariants: costs nothing in rate. Tokens are strings: JSON keeps 14 digits.

local LISTED_MAX = 100

local today, this_month = window(TODAY), window(THIS_MONTH)
sweep()
commit()

local function window_now(books, limit, ends)
  return {
    used = int(books.used),
    held = int(books.held),
    limit = limit and int(limit),
    ends = ends,
  }
end

local reservations = nil -- an empty table would be an object in JSON
local ids = redis.call('ZRANGE', LEASES, 0, LISTED_MAX - 1)
if #ids > 0 then
  reservations = {}
  for i, text in ipairs(redis.call('HMGET', RECORDS, unpack(ids))) do
    local hold = cjson.decode(text)
    reservations[i] = {
      id = ids[i],
      model = hold.model,
      reserved = hold.amount,
      progress = hold.progress,
      age_ms = now_ms - hold.since_ms,
    }
  end
end
return answer('read', {
  day = window_now(today, limits.day, day_ends),
  month = window_now(this_month, limits.month, month_ends),
  requests = rate_now(bucket(RPM, limits.requests)),
  tokens = rate_now(bucket(TPM, limits.tokens)),
  concurrency = limits.concurrency,
  in_use = redis.call('ZCARD', LEASES),
  reservations = reservations,
})
