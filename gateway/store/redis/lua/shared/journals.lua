-- Journals: one hash per purchase with state, worker, payload and consumptions; once closed with
-- charged and presumed instead of the payload. Numbers in JSON are text, so none loses digits.

local CLOSED_SECONDS = 7 * 86400 -- commands.CLOSED_JOURNAL_SECONDS

-- The consumptions of a reservation, each with the name and end of its window: a purchase is
-- charged to the windows of its reservation, whenever it is settled.
local function pack_reserved(consumptions)
  local packed = {}
  for _, consumption in ipairs(consumptions) do
    local counter = consumption.counter
    table.insert(packed, {
      counter.subject, counter.unit, counter.period,
      counter.maximum and digits(counter.maximum) or '', digits(consumption.amount),
      counter.window or '', counter.ends and digits(counter.ends) or '',
    })
  end
  return cjson.encode(packed)
end

-- The windows of packed consumptions as {key, unit, amount, ends, is_charged}. `is_charged` is true
-- for one of each counter, to which a charge is added; the concurrency window only counts
-- reserved amounts.
local function unpack_windows(packed)
  local windows, seen = {}, {}
  for _, item in ipairs(packed) do
    local subject, unit, period, amount, window = item[1], item[2], item[3], item[5], item[6]
    local key = BOOKS .. 'window:' .. subject .. ':' .. window
    if period ~= 'minute' then
      local counter = unit .. ' ' .. key
      table.insert(windows, {
        key = key, unit = unit, amount = tonumber(amount), ends = tonumber(item[7]),
        is_charged = period ~= 'concurrency' and not seen[counter],
      })
      seen[counter] = true
    end
  end
  return windows
end

-- Packed consumptions with their counters as they are now, for `states`.
local function reread_consumptions(packed)
  local arguments = {}
  for _, item in ipairs(packed) do
    for i = 1, 5 do
      arguments[#arguments + 1] = item[i]
    end
  end
  return read_consumptions(arguments, 1)
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
