-- Journals: one hash a purchase: state, worker, payload, takes; once closed charged and presumed
-- instead of the payload. All that is kept as JSON is text, so no number loses digits.

local CLOSED_SECONDS = 7 * 86400 -- verbs.CLOSED_JOURNAL_SECONDS

-- The takes of a reservation, each window with its name and end: a purchase belongs to those of
-- its reservation, whenever it is settled.
local function pack_reserved(takes)
  local packed = {}
  for _, take in ipairs(takes) do
    local meter = take.meter
    table.insert(packed, {
      meter.scope, meter.unit, meter.period, meter.maximum and digits(meter.maximum) or '',
      digits(take.amount), meter.window or '', meter.ends and digits(meter.ends) or '',
    })
  end
  return cjson.encode(packed)
end

-- What packed takes have reserved, as {key, unit, amount, ends, counts}; buckets are not among
-- them. `counts` is true for the one of each counter that a charge is added to; an open window
-- shows only what is reserved.
local function unpack_windows(packed)
  local windows, seen = {}, {}
  for _, take in ipairs(packed) do
    local scope, unit, period, amount, window = take[1], take[2], take[3], take[5], take[6]
    local key = BOOKS .. 'window:' .. scope .. ':' .. window
    if period ~= 'minute' then
      local counter = unit .. ' ' .. key
      table.insert(windows, {
        key = key, unit = unit, amount = tonumber(amount), ends = tonumber(take[7]),
        counts = period ~= 'concurrency' and not seen[counter],
      })
      seen[counter] = true
    end
  end
  return windows
end

-- Packed takes as `states` wants them, with what their meters show now.
local function reread_takes(packed)
  local arguments = {}
  for _, take in ipairs(packed) do
    for i = 1, 5 do
      arguments[#arguments + 1] = take[i]
    end
  end
  return read_takes(arguments, 1)
end

-- A charge as a table unit → amount, from a list unit, amount, ….
local function read_charge(arguments, first)
  local charge = {}
  for i = first, #arguments, 2 do
    charge[arguments[i]] = tonumber(arguments[i + 1])
  end
  return charge
end

local function pack_charge(charge)
  local packed = {}
  for unit, amount in pairs(charge) do
    table.insert(packed, unit)
    table.insert(packed, digits(amount))
  end
  return cjson.encode(packed)
end

local function unpack_charge(journal)
  return read_charge(cjson.decode(journal.charged), 1)
end
