-- Delete the keys of a chord that are of another type than it needs: nothing in them can be used.
local is_ordered = ARGV[2] == '1'

local kinds = {
    [j] = is_ordered and 'zset' or 'list',
    [t] = 'string', [s] = 'string', [d] = 'set', [c] = 'string', [record] = 'hash',
}
local deleted = 0
for key, kind in pairs(kinds) do
    local found = redis.call('TYPE', key).ok
    if found ~= kind and found ~= 'none' then
        deleted = deleted + redis.call('DEL', key)
    end
end
return deleted
