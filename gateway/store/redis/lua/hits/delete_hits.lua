-- KEYS: hits of images.
for _, hits in ipairs(KEYS) do
  redis.call('DEL', hits)
end
return 0
