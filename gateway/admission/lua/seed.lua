-- seed: make a key known to the store, or renew its limits. Stands alone: it knows
-- nothing of the books but the first key.
--
-- KEYS    1 key (see _books.lua)
-- ARGV    1 epoch to use if the key has none, 2 epoch in which the caller knew the key
--         to be revoked ('': it does not), 3... fields and values: digest, models and
--         limits
-- Returns seeded  epoch, revoked
--
-- Invariants: the epoch is set once in the life of the key. A revocation is never
-- lifted; one that the store has lost is written again.

redis.call('HSET', KEYS[1], unpack(ARGV, 3))
redis.call('HSETNX', KEYS[1], 'epoch', ARGV[1])
local epoch = redis.call('HGET', KEYS[1], 'epoch')
if ARGV[2] ~= '' and ARGV[2] ~= epoch then
  redis.call('HSET', KEYS[1], 'revoked', '1')
end
local revoked = redis.call('HGET', KEYS[1], 'revoked') == '1'
return cjson.encode({ status = 'seeded', epoch = epoch, revoked = revoked })
