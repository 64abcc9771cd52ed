-- renew: held -> held, for many reservations of one principal.
--
-- KEYS    see _books.lua
-- ARGV    1-3 see _books.lua, 4 lease in ms, 5 JSON array of reservations, at most 100:
--         [id, allowed, progress, dispatched, prompt, amount, stream, model,
--          day, month, epoch, since_ms], the last eight as granted
-- Returns renewed  states: for each in order held, revoked (held, by a revoked key) or
--                  gone (it has ended)
--
-- Invariants: allowed and progress never shrink, the dispatch mark is never cleared. A
-- reservation that was lost with the store is held again, in the windows that held it.
-- One whose lease has run out lives on if no sweep has come before.

local renewals = cjson.decode(ARGV[5])
local lease_ms = tonumber(ARGV[4])

local function held_again(renewal)
  if not was_lost(renewal[11], renewal[12]) then
    return nil
  end
  local hold = new_hold({
    prompt = renewal[5],
    amount = renewal[6],
    stream = renewal[7],
    model = renewal[8],
    day = renewal[9],
    month = renewal[10],
    since_ms = renewal[12],
  })
  add(hold, 0, hold.amount, true)
  take(bucket(TPM, limits.tokens), hold.amount)
  return hold
end

local ids, states = {}, {}
for i, renewal in ipairs(renewals) do
  ids[i] = renewal[1]
end
local texts = redis.call('HMGET', RECORDS, unpack(ids))
for i, renewal in ipairs(renewals) do
  local hold = texts[i] and cjson.decode(texts[i]) or held_again(renewal)
  if hold and hold.state == 'held' then
    hold.allowed = math.max(hold.allowed, renewal[2])
    hold.progress = math.max(hold.progress, renewal[3])
    hold.dispatched = hold.dispatched or renewal[4]
    keep(renewal[1], hold, lease_ms)
    states[i] = revoked and 'revoked' or 'held'
  else
    states[i] = 'gone'
  end
end
sweep()
-- A first write that cannot grow memory: a full store must not end live leases.
redis.call('EXPIREAT', LEASES, int(EXPIRES[THIS_MONTH]))
commit()
return answer('renewed', { states = states })
