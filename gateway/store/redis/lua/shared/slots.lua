-- The slots of a fingerprint: KEYS[1] is its entry, KEYS[2] its leases (both hashes by slot). A slot is
-- text here, as in the hashes: to make it a number and text again takes as long as half a call.
--
-- An image's value is "<expires> <stored> <length of the image id> <id><data>", a lease's value is
-- "<expires> <granted> <flight>", with times in microseconds. The scripts compare them with the
-- clock. A lease from the future, of a clock that was set back, lasts for its own length from now on.

local MAX_SLOTS = 64

local function pack_slot(expires, image, data)
  return digits(expires) .. ' ' .. now_digits() .. ' ' .. #image .. ' ' .. image .. data
end

local function unpack_slot(value)
  local expires, length, starts = string.match(value, '^(%d+) %d+ (%d+) ()')
  return {
    expires = tonumber(expires),
    image = string.sub(value, starts, starts + tonumber(length) - 1),
    value = value,
  }
end

local function unpack_lease(value)
  local expires, granted, flight = string.match(value, '^(%d+) (%d+) (.*)$')
  local ahead = granted - now
  if ahead < 0 then
    ahead = 0
  end
  return { expires = expires - ahead, flight = flight, is_from_future = ahead > 0 }
end

local function read_by_slot(key, unpack_value)
  local fields = redis.call('HGETALL', key)
  local found = {}
  for i = 1, #fields, 2 do
    found[fields[i]] = unpack_value(fields[i + 1])
  end
  return found
end

local function read_entry()
  return read_by_slot(KEYS[1], unpack_slot)
end

local function read_leases()
  return read_by_slot(KEYS[2], unpack_lease)
end

-- Whether there is an image or a lease that has not expired.
local function is_valid(value)
  return value ~= nil and value.expires > now
end

local function is_leased_by_other(lease, flight)
  return is_valid(lease) and lease.flight ~= flight
end

-- `is_first`: they are the only ones. A lease ends at a whole millisecond, as its key does: to write two
-- times as text would take longer than to store the lease.
local function lease_slots(slots, flight, lease, is_first)
  if not slots[1] then
    return
  end
  local ends = digits(math.floor((now + lease) / 1000))
  local value = ends .. '000 ' .. now_digits() .. ' ' .. flight
  for _, slot in ipairs(slots) do
    redis.call('HSET', KEYS[2], slot, value)
  end
  expire_at_least(KEYS[2], ends, is_first)
end

-- Stores leases from the future with the end that `unpack_lease` gives them.
local function end_future_leases(leases)
  for slot, lease in pairs(leases) do
    if lease.is_from_future then
      redis.call('HSET', KEYS[2], slot,
        digits(lease.expires) .. ' ' .. now_digits() .. ' ' .. lease.flight)
    end
  end
end

local function release_leases(leases, flight)
  for slot, lease in pairs(leases) do
    if lease.flight == flight then
      redis.call('HDEL', KEYS[2], slot)
    end
  end
end
