-- Count the parts of chords that say of a state in ARGV[3] that their members ended in it.
local is_ordered, states = ARGV[2] == '1', cjson.decode(ARGV[3])

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
for index = 4, #ARGV do
    local read = is_ordered and 'ZRANGE' or 'LRANGE'
    counts[index - 3] = 0
    -- Of a key of another type there is nothing to read.
    for _, part in ipairs(redis.pcall(read, group .. ARGV[index] .. '.j', 0, -1)) do
        counts[index - 3] = counts[index - 3] + (has_failed(part) and 1 or 0)
    end
end
return counts
