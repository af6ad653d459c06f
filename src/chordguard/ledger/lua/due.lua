-- Take the chords that are due; nobody else takes them for a while.
local now, til, most = ARGV[2], ARGV[3], ARGV[4]

local taken = redis.call('ZRANGEBYSCORE', due, '-inf', now, 'LIMIT', 0, most)
for _, id in ipairs(taken) do
    redis.call('ZADD', due, til, id)
end
return taken
