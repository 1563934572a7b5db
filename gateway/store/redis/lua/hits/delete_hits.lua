-- KEYS: hits of images.
for _, hits in ipairs(KEYS) do
  redis.write('DEL', hits)
end
return 0
