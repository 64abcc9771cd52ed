-- The books of one principal: what every move on them shares.
--
-- The loader puts this text before each move's own (reserve, renew, settle, release,
-- sweep, read), so that a move is a few lines on top of these words.
--
-- KEYS, all with the hash tag {principal}
--   1 key         hash    digest, models, limits ('' = none), revoked, epoch; no TTL
--   2 records     hash    reservation -> its record as JSON, a hold or a tombstone
--   3 leases      zset    held reservation -> Unix ms at which its lease runs out
--   4 graves      zset    ended reservation -> Unix ms until which it is remembered
--   5 rpm, 6 tpm  string  GCRA: theoretical arrival time, Unix µs
--   7, 8          hash    used, held of today, of yesterday
--   9, 10         hash    used, held of this month, of the month before
-- ARGV
--   1 day_ends, 2 month_starts, 3 month_ends: Unix s; what the caller takes for today.
--
-- Answers are one JSON object each: status, epoch, revoked, and how many reservations
-- this call swept (expired, released). Two come from here, before anything is changed:
--   wrong_window  KEYS 7-10 are not the windows of now_s: name others and ask again
--   unseeded      the store has no such key (any more): seed it and ask again
--
-- Invariants
--   A script has no rollback: reads come first, then decisions, then commit().
--   The only clock is the store's TIME.
--   A record is in leases while its state is held, in graves afterwards.
--   The held of a window is the sum of the holds it holds; nothing is ever negative.
--   Every key but the first has a TTL.

local RECORDS, LEASES, GRAVES, RPM, TPM = KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local TODAY, YESTERDAY, THIS_MONTH, LAST_MONTH = KEYS[7], KEYS[8], KEYS[9], KEYS[10]

local DAY_S = 86400
local MINUTE_US = 60000000
local FINAL_MS = 600000 -- a tombstone that nothing can change any more
local SWEPT_MS = 3600000 -- one that a late settlement may still correct
local SWEEP_MAX = 100 -- reservations a call: bounds what one caller pays for others
local UNSEEN_TOKENS = 64 -- most a swept answer without events is charged

local time = redis.call('TIME')
local now_s = tonumber(time[1])
local now_us = now_s * 1000000 + tonumber(time[2])
local now_ms = math.floor(now_us / 1000)
local day_ends, month_starts, month_ends =
  tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])

if now_s < day_ends - DAY_S or now_s >= day_ends
    or now_s < month_starts or now_s >= month_ends then
  return cjson.encode({ status = 'wrong_window', now_s = now_s })
end

local key = redis.call('HMGET', KEYS[1], 'epoch', 'revoked', 'requests_per_minute',
  'tokens_per_minute', 'concurrency', 'tokens_per_day', 'tokens_per_month')
if not key[1] then
  return cjson.encode({ status = 'unseeded' })
end
local epoch, revoked = key[1], key[2] == '1'
local limits = { -- nil where unlimited; rates are at least 1
  requests = tonumber(key[3]),
  tokens = tonumber(key[4]),
  concurrency = tonumber(key[5]),
  day = tonumber(key[6]),
  month = tonumber(key[7]),
}

-- Lua's own conversions keep 14 digits, and may write 18e8: µs have 16.
local function int(number)
  return string.format('%.0f', number)
end

------------------------------------------------------------------ day and month

local WINDOW_OF = { -- names have eight digits or six, so days and months never meet
  [TODAY:sub(-8)] = TODAY,
  [YESTERDAY:sub(-8)] = YESTERDAY,
  [THIS_MONTH:sub(-6)] = THIS_MONTH,
  [LAST_MONTH:sub(-6)] = LAST_MONTH,
}
local EXPIRES = { -- Unix s: two windows past the end
  [TODAY] = day_ends + 2 * DAY_S,
  [YESTERDAY] = day_ends + DAY_S,
  [THIS_MONTH] = month_ends + 62 * DAY_S,
  [LAST_MONTH] = month_starts + 62 * DAY_S,
}

local windows = {}

local function window(name)
  if not windows[name] then
    local fields = redis.call('HMGET', name, 'used', 'held')
    windows[name] = {
      exists = fields[1] ~= false,
      used = tonumber(fields[1]) or 0,
      held = tonumber(fields[2]) or 0,
    }
  end
  return windows[name]
end

-- Adds to the day and the month that hold a reservation. A window that is gone stays
-- gone, unless `create`.
local function add(owner, used, held, create)
  for _, name in ipairs({ owner.day, owner.month }) do
    local books = WINDOW_OF[name] and window(WINDOW_OF[name])
    if books and (books.exists or create) then
      books.used = math.max(0, books.used + used)
      books.held = math.max(0, books.held + held)
      books.changed = true
    end
  end
end

-------------------------------------------------------------------- rates (GCRA)

local buckets = {}

-- nil where unlimited. A bucket is full when its arrival time is now, and empty when
-- that lies a minute ahead: the burst is the whole limit.
local function bucket(name, limit)
  if limit and not buckets[name] then
    local arrival = tonumber(redis.call('GET', name)) or 0
    buckets[name] = { limit = limit, arrival = math.max(now_us, arrival) }
  end
  return buckets[name]
end

-- The arrival time after `n` more (or, when negative, fewer), rounded down: less than
-- 1 µs in the caller's favour, so that the whole limit fits at one instant.
local function arrival_after(rate, n)
  return math.max(now_us, math.floor(rate.arrival + n * MINUTE_US / rate.limit))
end

-- µs to wait until `n` pass; 0: they pass now.
local function wait_us(rate, n)
  if not rate then
    return 0
  end
  return math.max(0, arrival_after(rate, n) - now_us - MINUTE_US)
end

local function take(rate, n)
  if rate and n ~= 0 then
    rate.arrival = arrival_after(rate, n)
    rate.changed = true
  end
end

local function rate_now(rate)
  if not rate then
    return nil
  end
  local taken_us = rate.arrival - now_us
  local remaining = math.floor((MINUTE_US - taken_us) * rate.limit / MINUTE_US)
  return {
    limit = int(rate.limit),
    remaining = int(math.max(0, remaining)),
    reset_us = taken_us,
  }
end

---------------------------------------------------------------- holds, tombstones

-- What this call writes: reservation -> record, and its score in leases or in graves.
local records, leases, graves = {}, {}, {}
local ended = {} -- reservations that leave the leases
local stale = {} -- tombstones that need be kept no longer
local swept = { expired = 0, released = 0 }

local function record_of(id)
  local text = redis.call('HGET', RECORDS, id)
  return text and cjson.decode(text)
end

-- state: held, settled, released or expired. A hold has these fields; its tombstone
-- keeps state, swept (a late settlement may correct it, once), charged, day, month.
local function new_hold(terms)
  return {
    state = 'held',
    amount = terms.amount, -- tokens: of the prompt, and the most it may generate
    prompt = terms.prompt,
    allowed = 0, -- completion tokens that may have been relayed
    progress = 0, -- completion tokens that have been relayed
    dispatched = false, -- whether the request may have reached a provider
    stream = terms.stream,
    model = terms.model,
    day = terms.day,
    month = terms.month,
    since_ms = terms.since_ms,
  }
end

local function keep(id, hold, lease_ms)
  records[id], leases[id] = hold, now_ms + lease_ms
end

local function bury(id, owner, state, charged, is_swept)
  records[id] = {
    state = state,
    swept = is_swept,
    charged = charged,
    day = owner.day,
    month = owner.month,
  }
  graves[id] = now_ms + (is_swept and SWEPT_MS or FINAL_MS)
end

-- Ends a hold: `charged` tokens are used, all it held is free again.
local function close(id, hold, state, charged, is_swept)
  add(hold, charged, -hold.amount)
  take(bucket(TPM, limits.tokens), charged - hold.amount)
  ended[#ended + 1] = id
  bury(id, hold, state, charged, is_swept)
end

-- Whether an absent reservation was lost with the store. A tombstone outlives its
-- reservation's end by FINAL_MS: one that began later has had no time to lose it.
local function was_lost(epoch_then, since_ms)
  return epoch_then ~= epoch or now_ms - since_ms < FINAL_MS
end

-- Without the dispatch mark nothing reached a provider; with it, all that may have been
-- relayed is charged.
local function end_unrenewed(id, hold)
  if hold.dispatched then
    local seen = hold.stream and hold.allowed or math.min(UNSEEN_TOKENS, hold.allowed)
    close(id, hold, 'expired', hold.prompt + seen, true)
    swept.expired = swept.expired + 1
  else
    close(id, hold, 'released', 0, true)
    swept.released = swept.released + 1
  end
end

-- Ends the reservations whose lease has run out, but for those this call decided on.
local function sweep()
  local ids = redis.call('ZRANGEBYSCORE', LEASES, '-inf', int(now_ms),
    'LIMIT', 0, SWEEP_MAX)
  if #ids == 0 then
    return
  end
  local texts = redis.call('HMGET', RECORDS, unpack(ids))
  for i, id in ipairs(ids) do
    if not texts[i] then
      ended[#ended + 1] = id
    elseif not records[id] then
      end_unrenewed(id, cjson.decode(texts[i]))
    end
  end
end

local function find_stale()
  stale = redis.call('ZRANGEBYSCORE', GRAVES, '-inf', int(now_ms),
    'LIMIT', 0, SWEEP_MAX)
end

------------------------------------------------------------------------- writing

local function write_scores(name, scores)
  local words = {}
  for id, score in pairs(scores) do
    words[#words + 1] = int(score)
    words[#words + 1] = id
  end
  if #words > 0 then
    redis.call('ZADD', name, unpack(words))
    redis.call('EXPIREAT', name, int(EXPIRES[THIS_MONTH]))
  end
end

local function write_records()
  local words = {}
  for id, record in pairs(records) do
    words[#words + 1] = id
    words[#words + 1] = cjson.encode(record)
  end
  if #words > 0 then
    redis.call('HSET', RECORDS, unpack(words))
    -- A hold lives as long as the month it counts in, swept or not.
    redis.call('EXPIREAT', RECORDS, int(EXPIRES[THIS_MONTH]))
  end
end

local function write_windows()
  for name, books in pairs(windows) do
    if books.changed then
      redis.call('HSET', name, 'used', int(books.used), 'held', int(books.held))
    end
    if books.changed and not books.exists then
      redis.call('EXPIREAT', name, int(EXPIRES[name]))
    end
  end
end

local function write_buckets()
  for name, rate in pairs(buckets) do
    if rate.changed and rate.arrival > now_us then
      local full_ms = math.ceil((rate.arrival - now_us) / 1000)
      redis.call('SET', name, int(rate.arrival), 'PX', int(full_ms))
    elseif rate.changed then
      redis.call('DEL', name)
    end
  end
end

-- Writes all that was decided. A store that is out of memory refuses a script's first
-- write if that may grow memory, and none after it. So a new hold is refused before
-- anything has changed (HSET), and the end of one goes through (ZREM).
local function commit()
  if next(graves) then
    find_stale()
  end
  if #ended > 0 then
    redis.call('ZREM', LEASES, unpack(ended))
  end
  if #stale > 0 then
    redis.call('HDEL', RECORDS, unpack(stale))
    redis.call('ZREM', GRAVES, unpack(stale))
  end
  write_records()
  write_scores(LEASES, leases)
  write_scores(GRAVES, graves)
  write_windows()
  write_buckets()
end

local function answer(status, fields)
  fields = fields or {}
  fields.status, fields.epoch, fields.revoked = status, epoch, revoked
  fields.expired, fields.released = swept.expired, swept.released
  return cjson.encode(fields)
end

-- Ends the caller's reservation at `used` tokens: all of settle and of release.
-- ARGV 4 id, 5 to 8 as granted: epoch, day, month, since_ms.
local function finish(state, used)
  local id, granted = ARGV[4], { day = ARGV[6], month = ARGV[7] }
  local record = record_of(id)
  local result = state
  if record and record.state == 'held' then
    close(id, record, state, used, false)
  elseif record and record.swept then
    add(record, used - record.charged, 0)
    take(bucket(TPM, limits.tokens), used - record.charged)
    bury(id, record, state, used, false)
    result = 'late'
  elseif record or not was_lost(ARGV[5], tonumber(ARGV[8])) then
    result = 'duplicate'
  else
    add(granted, used, 0, used > 0)
    take(bucket(TPM, limits.tokens), used)
    bury(id, granted, state, used, false)
  end
  sweep()
  commit()
  return answer(result)
end

