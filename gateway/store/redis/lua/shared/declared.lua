-- Every key that a script touches is in KEYS: from here on, `redis` refuses any other. In a cluster a
-- slot moves key by key, and the server may refuse a key in the middle of a script, after other keys
-- were written. It looks at KEYS before the script starts. A script that names no key but those of
-- KEYS does without this part.
--
-- A script that finds that it needs further keys answers 'KEYS <now> <how many> <names>', and the
-- gateway sends it again with these. A script that has written anything never answers so: sent again,
-- it would write it twice. So writes have a function of their own, `redis.write`.

local server_call, error_reply = redis.call, redis.error_reply
local has_written = false

local declared = {}
for i = 1, #KEYS do
  declared[KEYS[i]] = true
end

-- A function that a script may set: adds to a list the names of the keys that it will need later, so
-- that it need not ask again.
local add_needed

-- Ends the script with the answer that it needs these keys.
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
