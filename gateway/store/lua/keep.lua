-- KEYS: entry, claims. ARGV: flight, lifetime, linger, then slot, picture id and data of each,
-- in the order of the slots.
-- Answers wanted slot, slot it lies in, ….
local flight = ARGV[1]
local expires, linger = now + tonumber(ARGV[2]), tonumber(ARGV[3])
local entry, claims = read_entry(), read_claims()

local slot_of = {} -- picture id → where the entry holds it
for slot, held in pairs(entry) do
  slot_of[held.picture] = slot
end

local function is_free(slot)
  local claim = claims[slot]
  return not is_live(entry[slot]) and not (is_live(claim) and claim.flight ~= flight)
end

local function lowest_free()
  for slot = 0, MAX_SLOTS - 1 do
    if is_free(slot) then
      return slot
    end
  end
end

local writes = {}
local function place(picture, slot)
  if slot_of[picture.id] or not slot then
    return
  end
  local value = pack_slot(expires, picture.id, picture.data)
  entry[slot] = { expires = expires, picture = picture.id, value = value }
  slot_of[picture.id] = slot
  table.insert(writes, slot)
  table.insert(writes, value)
end

local pictures = {}
for i = 4, #ARGV, 3 do
  table.insert(pictures, { wanted = tonumber(ARGV[i]), id = ARGV[i + 1], data = ARGV[i + 2] })
end
for _, picture in ipairs(pictures) do
  place(picture, is_free(picture.wanted) and picture.wanted or lowest_free())
end

if #writes > 0 then
  redis.call('HSET', KEYS[1], unpack(writes))
  live_until(KEYS[1], expires + linger)
end
release(claims, flight)

local places = {}
for _, picture in ipairs(pictures) do
  if slot_of[picture.id] then
    table.insert(places, picture.wanted)
    table.insert(places, slot_of[picture.id])
  end
end
return places
