-- reserve: absent -> held, or nothing.
--
-- KEYS    see _books.lua
-- ARGV    1-3 see _books.lua, 4 id, 5 prompt tokens, 6 completion tokens, 7 stream
--         ('1' or '0'), 8 model, 9 lease in ms
-- Returns held     day, month, since_ms, requests, tokens; also if it is held already
--         refused  limit (the first of day, month, concurrency, requests, tokens that
--                  does not suffice), retry_after_us, should_retry, requests, tokens
--         revoked  the key may not be used
--         over     this reservation has ended: its id is spent
--
-- Invariants: used + held <= limit for day and month afterwards; a refusal changes
-- nothing but what the sweep ended.

local CONCURRENCY_WAIT_US = 1000000 -- nobody knows when a stream ends: ask every second

local id = ARGV[4]
local prompt, stream, model = tonumber(ARGV[5]), ARGV[7] == '1', ARGV[8]
local amount = prompt + tonumber(ARGV[6])

local requests, tokens = bucket(RPM, limits.requests), bucket(TPM, limits.tokens)

local function granted(hold)
  return answer('held', {
    day = hold.day,
    month = hold.month,
    since_ms = hold.since_ms,
    requests = rate_now(requests),
    tokens = rate_now(tokens),
  })
end

if revoked then
  return answer('revoked')
end
local record = record_of(id)
if record then
  return record.state == 'held' and granted(record) or answer('over')
end

sweep()
local today, this_month = window(TODAY), window(THIS_MONTH)

local function refuse(limit, retry_after_us, should_retry)
  commit()
  return answer('refused', {
    limit = limit,
    retry_after_us = retry_after_us,
    should_retry = should_retry,
    requests = rate_now(requests),
    tokens = rate_now(tokens),
  })
end

local function exceeds(books, limit)
  return limit and books.used + books.held + amount > limit
end

if exceeds(today, limits.day) then
  return refuse('day', day_ends * 1000000 - now_us, false)
end
if exceeds(this_month, limits.month) then
  return refuse('month', month_ends * 1000000 - now_us, false)
end
if limits.concurrency
    and redis.call('ZCARD', LEASES) - #ended >= limits.concurrency then
  return refuse('concurrency', CONCURRENCY_WAIT_US, true)
end
local wait = wait_us(requests, 1)
if wait > 0 then
  return refuse('requests', wait, true)
end
wait = wait_us(tokens, amount)
if wait > 0 then
  return refuse('tokens', wait, limits.tokens >= amount)
end

local hold = new_hold({
  amount = amount,
  prompt = prompt,
  stream = stream,
  model = model,
  day = TODAY:sub(-8),
  month = THIS_MONTH:sub(-6),
  since_ms = now_ms,
})
take(requests, 1)
take(tokens, amount)
add(hold, 0, amount, true)
keep(id, hold, tonumber(ARGV[9]))
commit()
return granted(hold)
