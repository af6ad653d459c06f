-- Count the parts of chords that say of a state in ARGV[2] that their members ended in it.
local is_ordered, states = ARGV[1] == '1', cjson.decode(ARGV[2])

local function has_failed(part)
    local beginning = string.sub(part, 1, BEGINNING)
    for _, state in ipairs(states) do
        local found = string.find(beginning, state, 1, true)
        if found then
            -- The first state that is named is that of the member.
            local success = string.find(beginning, 'SUCCESS', 1, true)
            return not success or found < success
        end
    end
    return false
end

local counts = {}
for index = 3, #ARGV do
    local read = is_ordered and 'ZRANGE' or 'LRANGE'
    counts[index - 2] = 0
    for _, part in ipairs(redis.call(read, group .. ARGV[index] .. '.j', 0, -1)) do
        counts[index - 2] = counts[index - 2] + (has_failed(part) and 1 or 0)
    end
end
return counts
