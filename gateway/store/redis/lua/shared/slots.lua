-- Slots of a fingerprint: KEYS[1] is its entry, KEYS[2] its claims (both hashes by slot number).
--
-- An entry's value is "<expires> <length of the image's id> <id><data>", a claim's value is
-- "<expires> <flight>", both times in microseconds. Whether they are over is judged by the clock.

local MAX_SLOTS = 64

local function pack_slot(expires, image, data)
  return digits(expires) .. ' ' .. #image .. ' ' .. image .. data
end

local function unpack_slot(value)
  local expires, length, starts = string.match(value, '^(%d+) (%d+) ()')
  return {
    expires = tonumber(expires),
    image = string.sub(value, starts, starts + tonumber(length) - 1),
    value = value,
  }
end

local function unpack_claim(value)
  local expires, flight = string.match(value, '^(%d+) (.*)$')
  return { expires = tonumber(expires), flight = flight, value = value }
end

local function read_by_slot(key, unpack_value)
  local fields = redis.call('HGETALL', key)
  local found = {}
  for i = 1, #fields, 2 do
    found[tonumber(fields[i])] = unpack_value(fields[i + 1])
  end
  return found
end

local function read_entry()
  return read_by_slot(KEYS[1], unpack_slot)
end

local function read_claims()
  return read_by_slot(KEYS[2], unpack_claim)
end

local function is_live(held)
  return held ~= nil and held.expires > now
end

local function release(claims, flight)
  for slot, claim in pairs(claims) do
    if claim.flight == flight then
      redis.call('HDEL', KEYS[2], slot)
    end
  end
end
