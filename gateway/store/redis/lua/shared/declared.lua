-- From here on, `redis` refuses every key that is not in KEYS. While a slot of a cluster moves key by
-- key, the server checks KEYS before it starts a script. Any other key it may refuse in the middle of
-- the script, after other keys were written. Scripts whose keys are all in their command do without
-- this part.
--
-- A script that needs further keys returns the error 'KEYS <now> <how many> <names>', and the gateway
-- sends it again with these keys. A script that has written something must not do that, because the
-- gateway would then write it twice. `redis.write` notes that a script has written.

local server_call, error_reply = redis.call, redis.error_reply
local has_written = false

local declared = {}
for i = 1, #KEYS do
  declared[KEYS[i]] = true
end

-- A script may set this function. It adds the keys that the script will need later, which saves the
-- script from asking again.
local add_needed

-- Ends the script with the error that asks for these keys.
local function ask_for(names)
  if has_written then
    error({ err = 'ERR This script has written before it needed the key ' .. names[1] })
  end
  local add = add_needed
  if add then
    add_needed = nil
    add(names)
  end
  local function percent_encoded(byte)
    return string.format('%%%02X', string.byte(byte))
  end
  local asked, is_asked = {}, {}
  for _, name in ipairs(names) do
    if not declared[name] and not is_asked[name] then
      is_asked[name] = true
      asked[#asked + 1] = string.gsub(name, '[^%w:{}_.-]', percent_encoded)
    end
  end
  error({ err = 'KEYS ' .. digits(now) .. ' ' .. #asked .. ' ' .. table.concat(asked, ' ') })
end

-- Goes on only if all these keys are declared.
local function need(names)
  for _, name in ipairs(names) do
    if not declared[name] then
      ask_for(names)
    end
  end
end

local redis = {
  call = function(command, key, ...)
    if not declared[key] then
      ask_for({ key })
    end
    return server_call(command, key, ...)
  end,
  write = function(command, key, ...)
    if not declared[key] then
      ask_for({ key })
    end
    has_written = true
    return server_call(command, key, ...)
  end,
}
