-- Note what workers without the patches have counted.
if redis.call('EXISTS', record) == 1 then
    redis.call('HSET', record, 'progressed', ARGV[1], 'seen', ARGV[2])
end
return 1
