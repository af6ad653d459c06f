-- Note what workers without the patches have counted.
if redis.call('EXISTS', record) == 1 then
    redis.call('HSET', record, 'progressed', ARGV[2], 'seen', ARGV[3])
end
return 1
