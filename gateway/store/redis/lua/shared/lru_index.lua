-- The LRU index: KEYS are its four keys.
--
-- If the server's memory is full, Redis refuses a script at its first write that needs memory,
-- unless the script has already done a write that needs none. So scripts remove before they add.

local USED = KEYS[1] -- sorted set: digest → its last use
local EXPIRES = KEYS[2] -- sorted set: digest → its expiry
local SIZES = KEYS[3] -- hash: digest → its bytes
local TOTAL = KEYS[4] -- the sum of all sizes

local MAX_EVICTIONS = 1000 -- commands.MAX_EVICTIONS
local EXPIRED_STEP = 100
local PAGE = 10

local function read_total()
  return tonumber(redis.call('GET', TOTAL) or 0)
end

local function expiry_of(digest)
  return tonumber(redis.call('ZSCORE', EXPIRES, digest) or 0)
end

-- Now, or just after the last use, as text: no two uses have the same time. To count those from now on
-- takes half as long as to read the last one.
local function next_use()
  local text = now_digits()
  if redis.call('ZCOUNT', USED, text, '+inf') == 0 then
    return text
  end
  return digits(redis.call('ZRANGE', USED, 0, 0, 'REV', 'WITHSCORES')[2] + 1)
end

local function untrack(digest)
  local size = redis.call('HGET', SIZES, digest)
  if not size then
    return
  end
  redis.call('ZREM', USED, digest)
  redis.call('ZREM', EXPIRES, digest)
  redis.call('HDEL', SIZES, digest)
  if redis.call('DECRBY', TOTAL, size) == 0 then
    redis.call('DEL', TOTAL)
  end
end

-- Removes up to `limit` expired digests; returns how many there were.
local function untrack_expired(limit)
  local expired = redis.call('ZRANGEBYSCORE', EXPIRES, '-inf', now_digits(), 'LIMIT', 0, limit)
  for _, digest in ipairs(expired) do
    untrack(digest)
  end
  return #expired
end

-- The least recently used digests that together have at least `bytes`, without the `skip` oldest
-- ones, and the bytes of each. Expired digests are included: they have bytes too, and skipping them
-- would take longer the more there are.
local function eviction_candidates(bytes, skip)
  local found, found_sizes = {}, {}
  while bytes > 0 and #found < MAX_EVICTIONS do
    local first = skip + #found
    local digests = redis.call('ZRANGE', USED, first, first + PAGE - 1)
    if #digests == 0 then
      break
    end
    local sizes = redis.call('HMGET', SIZES, unpack(digests))
    for i, digest in ipairs(digests) do
      if bytes > 0 then
        table.insert(found, digest)
        table.insert(found_sizes, sizes[i])
        bytes = bytes - tonumber(sizes[i])
      end
    end
  end
  return found, found_sizes
end

-- Removes expired digests, more of them if the bound is exceeded, then evicts the least recently used
-- ones. Returns the evicted digests.
local function evict_to(max_bytes)
  local removed, expired = 0, nil
  repeat
    expired = untrack_expired(EXPIRED_STEP)
    removed = removed + expired
  until expired < EXPIRED_STEP or removed >= MAX_EVICTIONS or read_total() <= max_bytes
  local evicted = eviction_candidates(read_total() - max_bytes, 0)
  for _, digest in ipairs(evicted) do
    untrack(digest)
  end
  return evicted
end
