-- The shelf: KEYS[1] is the prefix of its keys. It carries the hash tag {shelf}, so they all lie in
-- the slot that KEYS[1] names.
--
-- Redis refuses the first write of a script if that needs memory and there is none left; what comes
-- after a write that needed none is let through. So scripts take off first and put afterwards.

local USED = KEYS[1] .. 'used' -- sorted set: digest → when it was last used
local ENDS = KEYS[1] .. 'ends' -- sorted set: digest → when its stay is over
local SIZES = KEYS[1] .. 'sizes' -- hash: digest → its bytes
local TOTAL = KEYS[1] .. 'total' -- the sum of all sizes

local MOST_VICTIMS = 1000 -- verbs.MOST_VICTIMS
local MOST_FORGOTTEN = 100
local PAGE = 10

local function total()
  return tonumber(redis.call('GET', TOTAL) or 0)
end

local function end_of(digest)
  return tonumber(redis.call('ZSCORE', ENDS, digest) or 0)
end

-- Now, but later than any use before: no two are ever the same moment.
local function next_use()
  local latest = redis.call('ZRANGE', USED, 0, 0, 'REV', 'WITHSCORES')[2]
  return math.max(now, (tonumber(latest) or 0) + 1)
end

local function take_off(digest)
  local size = redis.call('HGET', SIZES, digest)
  if not size then
    return
  end
  redis.call('ZREM', USED, digest)
  redis.call('ZREM', ENDS, digest)
  redis.call('HDEL', SIZES, digest)
  if redis.call('DECRBY', TOTAL, size) == 0 then
    redis.call('DEL', TOTAL)
  end
end

-- Takes off up to `most` that are past their time; answers how many there were.
local function forget_ended(most)
  local ended = redis.call('ZRANGEBYSCORE', ENDS, '-inf', digits(now), 'LIMIT', 0, most)
  for _, digest in ipairs(ended) do
    take_off(digest)
  end
  return #ended
end

-- The live ones that together have so many bytes, oldest first.
local function least_used(bytes)
  local found, first = {}, 0
  while bytes > 0 and #found < MOST_VICTIMS do
    local digests = redis.call('ZRANGE', USED, first, first + PAGE - 1)
    if #digests == 0 then
      break
    end
    local sizes = redis.call('HMGET', SIZES, unpack(digests))
    for i, digest in ipairs(digests) do
      if bytes > 0 and #found < MOST_VICTIMS and end_of(digest) > now then
        table.insert(found, digest)
        bytes = bytes - tonumber(sizes[i])
      end
    end
    first = first + PAGE
  end
  return found
end

-- Forgets what is over, then takes off as many of the least recently used as it takes.
local function make_room(most_bytes)
  forget_ended(MOST_FORGOTTEN)
  while total() > most_bytes and forget_ended(MOST_FORGOTTEN) > 0 do
  end
  local victims = least_used(total() - most_bytes)
  for _, digest in ipairs(victims) do
    take_off(digest)
  end
  return victims
end
