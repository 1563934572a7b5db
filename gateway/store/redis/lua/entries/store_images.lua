-- KEYS: entry, leases. ARGV: flight, time to live, stale-if-error window, '1' = displaces, then
-- wanted slot, image id and data of each image, by slot.
-- Returns wanted slot, actual slot, ….
local flight = ARGV[1]
local expires, stale_if_error = now + tonumber(ARGV[2]), tonumber(ARGV[3])
local displaces = ARGV[4] == '1'

-- One image for an entry that is empty, as most purchases have it: a quarter less time.
if #ARGV == 7 and redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('HSET', KEYS[1], ARGV[5], pack_slot(expires, ARGV[6], ARGV[7]))
  redis.call('PEXPIREAT', KEYS[1], milliseconds(expires + stale_if_error))
  release_leases(read_leases(), flight)
  return { ARGV[5], ARGV[5] }
end

local entry, leases = read_entry(), read_leases()
local is_new = next(entry) == nil

local images, is_bought = {}, {}
for i = 5, #ARGV, 3 do
  images[#images + 1] = { wanted = ARGV[i], id = ARGV[i + 1], data = ARGV[i + 2] }
  is_bought[ARGV[i + 1]] = true
end

local slot_of = {} -- image id → slot
for slot, stored in pairs(entry) do
  slot_of[stored.image] = slot
end

local function is_free(slot)
  return not is_valid(entry[slot]) and not is_leased_by_other(leases[slot], flight)
end

local function lowest_free()
  for number = 0, MAX_SLOTS - 1 do
    local slot = tostring(number)
    if is_free(slot) then
      return slot
    end
  end
end

local writes = {}
local function put(stored, slot)
  local before = entry[slot]
  if before and slot_of[before.image] == slot then
    slot_of[before.image] = nil
  end
  entry[slot] = stored
  slot_of[stored.image] = slot
  writes[#writes + 1] = slot
  writes[#writes + 1] = stored.value
end

local displaced = {}
local function choose_slot(wanted)
  local stored = entry[wanted]
  if displaces and is_valid(stored) and not is_bought[stored.image]
    and not is_leased_by_other(leases[wanted], flight) then
    displaced[#displaced + 1] = stored
    return wanted
  end
  -- An empty slot that was wanted is filled, also if another flight has leased it by now: that one
  -- finds another slot for its image, and a request that asks for this slot need not buy it again.
  return not is_valid(stored) and wanted or lowest_free()
end

for _, image in ipairs(images) do
  local slot = not slot_of[image.id] and choose_slot(image.wanted)
  if slot then
    local value = pack_slot(expires, image.id, image.data)
    put({ expires = expires, image = image.id, value = value }, slot)
  end
end
for _, stored in ipairs(displaced) do
  local slot = lowest_free()
  if slot then
    put(stored, slot)
  end
end

if writes[1] then
  redis.call('HSET', KEYS[1], unpack(writes))
  expire_at_least(KEYS[1], milliseconds(expires + stale_if_error), is_new)
end
release_leases(leases, flight)

local actual = {}
for _, image in ipairs(images) do
  if slot_of[image.id] then
    actual[#actual + 1] = image.wanted
    actual[#actual + 1] = slot_of[image.id]
  end
end
return actual
