-- KEYS: books. ARGV: the id of the append, what its images had cost as JSON (running total →
-- micro-dollars), then the records.
local APPENDED_SECONDS = 3600 -- commands.APPENDED_SECONDS
local is_new = redis.call('SET', BOOKS .. 'appended:' .. ARGV[1], '1', 'NX', 'EX', APPENDED_SECONDS)
if not is_new then
  return 0
end
for name, usd_micros in pairs(cjson.decode(ARGV[2])) do
  add_to_total(name, 'saved', usd_micros)
end
local day = ledger_day()
for i = 3, #ARGV do
  append_record(day, ARGV[i])
end
return #ARGV - 2
