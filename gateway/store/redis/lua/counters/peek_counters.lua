-- KEYS: the counters. ARGV: the calendar, the consumptions, all of amount 0. Returns the states.
if not choose_windows(ARGV[1]) then
  return wrong_calendar()
end
return states(read_consumptions(ARGV, 2))
