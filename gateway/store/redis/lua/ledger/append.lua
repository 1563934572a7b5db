-- KEYS: books. ARGV: the id of the append, then the records.
local APPENDED_SECONDS = 3600 -- commands.APPENDED_SECONDS
local is_new = redis.call('SET', BOOKS .. 'appended:' .. ARGV[1], '1', 'NX', 'EX', APPENDED_SECONDS)
if not is_new then
  return 0
end
local day = ledger_day()
for i = 2, #ARGV do
  append_record(day, ARGV[i])
end
return #ARGV - 1
