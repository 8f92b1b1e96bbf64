-- A fixed window: it begins with the first request after the last one has ended.
-- KEYS: the counter, unused, the grant of this call ('' if it is never repeated).
-- ARGV: limit, window (ms), unused, amount, 1 if less than all will do.
-- Returns what was granted and how long the window still lasts (ms).
local function tell(granted, left)
  if KEYS[3] ~= '' and left > 0 then
    redis.call('HSET', KEYS[3], 'granted', granted)
    redis.call('PEXPIRE', KEYS[3], left)
  end
  return { granted, left }
end

if KEYS[3] ~= '' then
  local granted = redis.call('HGET', KEYS[3], 'granted')
  if granted then
    return { tonumber(granted), math.max(redis.call('PTTL', KEYS[3]), 1) }
  end
end

local limit, window, amount = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[4])
local left = redis.call('PTTL', KEYS[1])
local used = tonumber(redis.call('HGET', KEYS[1], 'token') or '0')
if left <= 0 then
  left, used = window, 0
end
local available = limit - used
local granted = amount
if amount < 0 then
  granted = -math.min(-amount, used)
elseif amount > available then
  granted = ARGV[5] == '1' and math.max(available, 0) or 0
end
redis.call('HSET', KEYS[1], 'token', used + granted)
redis.call('PEXPIRE', KEYS[1], left)
return tell(granted, left)
