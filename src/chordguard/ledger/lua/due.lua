-- Take the chords that are due; nobody else takes them for a while.
local now, til, most = ARGV[1], ARGV[2], ARGV[3]

local taken = redis.call('ZRANGEBYSCORE', due, '-inf', now, 'LIMIT', 0, most)
for _, group_id in ipairs(taken) do
    redis.call('ZADD', due, til, group_id)
end
return taken
