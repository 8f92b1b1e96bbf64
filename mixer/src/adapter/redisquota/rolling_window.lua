-- A rolling window of buckets: what a bucket has taken comes back when all of it is older than the window, so that no
-- window of this length ever has more than the limit.
-- KEYS: the counter, its buckets, the grant of this call ('' if it is never repeated).
-- ARGV: limit, window (ms), bucket (ms), amount, 1 if less than all will do.
-- Returns what was granted and the window's length (ms).
local window, bucket = tonumber(ARGV[2]), tonumber(ARGV[3])
local limit, amount = tonumber(ARGV[1]), tonumber(ARGV[4])

if KEYS[3] ~= '' then
  local granted = redis.call('HGET', KEYS[3], 'granted')
  if granted then
    return { tonumber(granted), window }
  end
end

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local used = tonumber(redis.call('HGET', KEYS[1], 'token') or '0')

-- A member is "start:amount", its score the start.
local old = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now - window - bucket)
for _, member in ipairs(old) do
  used = used - tonumber(string.match(member, ':(-?%d+)$'))
  redis.call('ZREM', KEYS[2], member)
end
used = math.max(used, 0)

local available = limit - used
local granted = amount
if amount < 0 then
  granted = -math.min(-amount, used)
elseif amount > available then
  granted = ARGV[5] == '1' and math.max(available, 0) or 0
end

if granted ~= 0 then
  local start = now - now % bucket
  local taken = 0
  local members = redis.call('ZRANGEBYSCORE', KEYS[2], start, start)
  for _, member in ipairs(members) do
    taken = tonumber(string.match(member, ':(-?%d+)$'))
    redis.call('ZREM', KEYS[2], member)
  end
  redis.call('ZADD', KEYS[2], start, string.format('%d:%d', start, taken + granted))
end
redis.call('HSET', KEYS[1], 'token', used + granted)
redis.call('PEXPIRE', KEYS[1], window + 2 * bucket)
redis.call('PEXPIRE', KEYS[2], window + 2 * bucket)
if KEYS[3] ~= '' then
  redis.call('HSET', KEYS[3], 'granted', granted)
  redis.call('PEXPIRE', KEYS[3], window)
end
return { granted, window }
