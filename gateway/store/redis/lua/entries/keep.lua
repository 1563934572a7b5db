-- KEYS: entry, claims. ARGV: flight, lifetime, linger, '1' if it displaces, then slot, image id and
-- data of each, in the order of the slots.
-- Answers wanted slot, slot it lies in, ….
local flight = ARGV[1]
local expires, linger = now + tonumber(ARGV[2]), tonumber(ARGV[3])
local displaces = ARGV[4] == '1'
local entry, claims = read_entry(), read_claims()

local images, own = {}, {}
for i = 5, #ARGV, 3 do
  table.insert(images, { wanted = tonumber(ARGV[i]), id = ARGV[i + 1], data = ARGV[i + 2] })
  own[ARGV[i + 1]] = true
end

local slot_of = {} -- image id → where the entry holds it
for slot, held in pairs(entry) do
  slot_of[held.image] = slot
end

local function is_anothers(slot)
  local claim = claims[slot]
  return is_live(claim) and claim.flight ~= flight
end

local function is_free(slot)
  return not is_live(entry[slot]) and not is_anothers(slot)
end

local function must_make_way(slot)
  return displaces and is_live(entry[slot]) and not own[entry[slot].image]
    and not is_anothers(slot)
end

local function lowest_free()
  for slot = 0, MAX_SLOTS - 1 do
    if is_free(slot) then
      return slot
    end
  end
end

local writes = {}
local function put(held, slot)
  local before = entry[slot]
  if before and slot_of[before.image] == slot then
    slot_of[before.image] = nil
  end
  entry[slot] = held
  slot_of[held.image] = slot
  table.insert(writes, slot)
  table.insert(writes, held.value)
end

local displaced = {}
local function find_place(wanted)
  if must_make_way(wanted) then
    table.insert(displaced, entry[wanted])
    return wanted
  end
  return is_free(wanted) and wanted or lowest_free()
end

for _, image in ipairs(images) do
  local slot = not slot_of[image.id] and find_place(image.wanted)
  if slot then
    local value = pack_slot(expires, image.id, image.data)
    put({ expires = expires, image = image.id, value = value }, slot)
  end
end
for _, held in ipairs(displaced) do
  local slot = lowest_free()
  if slot then
    put(held, slot)
  end
end

if #writes > 0 then
  redis.call('HSET', KEYS[1], unpack(writes))
  live_until(KEYS[1], expires + linger)
end
release(claims, flight)

local places = {}
for _, image in ipairs(images) do
  if slot_of[image.id] then
    table.insert(places, image.wanted)
    table.insert(places, slot_of[image.id])
  end
end
return places
