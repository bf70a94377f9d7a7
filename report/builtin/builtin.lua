-- What Quarto does and plain pandoc does not, for the small part of Quarto these sources use:
-- authors, cross-references (@fig- @tbl- @sec- @eq-), equation labels, callouts, side-by-side figures.
-- Anything outside this list stops the build in the driver, so that both renderers always say the same.

local NAMES = {fig = "Figure", tbl = "Table", sec = "Section", eq = "Equation"}
local is_typst, is_html = FORMAT:match("typst") ~= nil, FORMAT:match("revealjs") ~= nil
local numbers, equations = {}, {}

local function stop(message) io.stderr:write("report: " .. message .. "\n"); os.exit(3) end

local function kind_of(id) return id:match("^(%a+)%-") end

-- `author: {name, affiliations: [..]}` becomes the `by-author` that Quarto hands to the partials.
local function authors(meta)
  local list = pandoc.List({})
  for _, author in ipairs(meta.author or {}) do
    local named = pandoc.utils.type(author) == "table" and author or {name = author}
    local places = pandoc.List({})
    for _, place in ipairs(named.affiliations or {}) do places:insert({name = place.name or place}) end
    list:insert({name = {literal = named.name}, affiliations = places})
  end
  meta["by-author"] = list
  if is_html then
    meta.author = list:map(function(a) return a.name.literal end)
  end
  return meta
end

-- Numbers for the slides, where no typesetter counts.
local function count(id)
  local kind = kind_of(id)
  numbers[kind] = (numbers[kind] or 0) + 1
  equations[id] = numbers[kind]
end

local function caption_prefix(element, kind)
  local first = element.caption.long[1]
  if not first then return element end
  first.content:insert(1, pandoc.Space())
  first.content:insert(1, pandoc.Str(NAMES[kind] .. "\u{a0}" .. equations[element.identifier] .. ":"))
  return element
end

-- What has no label gets no number: as in the HTML, and in Quarto's typst, whose floats are of a kind of their own.
local function unnumbered(element)
  if not is_typst then return nil end
  return {pandoc.RawBlock("typst", "#[\n#set figure(numbering: none)"), element, pandoc.RawBlock("typst", "]")}
end

local function float(element)
  local kind = kind_of(element.identifier or "")
  if not NAMES[kind] then return unnumbered(element) end
  count(element.identifier)
  if is_html then return caption_prefix(element, kind) end
end

-- $$ ... $$ {#eq-name}: the label arrives as plain text behind the formula.
local function equation(para)
  local label
  local kept = para.content:filter(function(x)
    local id = x.t == "Str" and x.text:match("^{#(eq%-[%w%-_]+)}$")
    label = label or id
    return not id
  end)
  if not label then return nil end
  local formula = kept:find_if(function(x) return x.t == "Math" end)
  if not formula then stop("label " .. label .. " stands behind no formula") end
  count(label)
  if is_typst then
    local body = pandoc.write(pandoc.Pandoc({pandoc.Plain({formula})}), "typst"):gsub("%s+$", "")
    return pandoc.RawBlock("typst",
      '#math.equation(block: true, numbering: "(1)", [' .. body .. "])<" .. label .. ">")
  end
  kept:insert(pandoc.Str("\u{2003}(" .. equations[label] .. ")"))
  return pandoc.Div({pandoc.Para(kept)}, {id = label})
end

local function reference(cite)
  local out = pandoc.List({})
  for i, c in ipairs(cite.citations) do
    local kind = kind_of(c.id)
    if not NAMES[kind] then return nil end
    if i > 1 then out:insert(pandoc.Str(", ")) end
    if is_typst then
      out:insert(pandoc.RawInline("typst", "#ref(<" .. c.id .. ">, supplement: [" .. NAMES[kind] .. "])"))
    else
      if not equations[c.id] then stop("unknown cross-reference @" .. c.id) end
      out:insert(pandoc.Link(NAMES[kind] .. "\u{a0}" .. equations[c.id], "#" .. c.id))
    end
  end
  return out
end

local function callout(div)
  local kind = (div.classes:find_if(function(c) return c:match("^callout%-") end) or ""):match("^callout%-(%a+)")
  if not kind then return nil end
  local title = div.attributes.title or (kind:sub(1, 1):upper() .. kind:sub(2))
  if is_typst then
    local blocks = pandoc.List({pandoc.RawBlock("typst",
      "#block(width: 100%, inset: 7pt, stroke: (left: 2.5pt + luma(90)), fill: luma(243), above: 0.9em, below: 0.9em)[")})
    blocks:insert(pandoc.Para({pandoc.Strong({pandoc.Str(title)})}))
    blocks:extend(div.content)
    blocks:insert(pandoc.RawBlock("typst", "]"))
    return blocks
  end
  table.insert(div.content, 1, pandoc.Para({pandoc.Strong({pandoc.Str(title)})}))
  return div
end

local function layout(div)
  local n = tonumber(div.attributes["layout-ncol"])
  if not n then return nil end
  if is_typst then
    local blocks = pandoc.List({pandoc.RawBlock("typst", "#grid(columns: (" .. ("1fr, "):rep(n) .. "), gutter: 1em,")})
    for _, block in ipairs(div.content) do
      blocks:extend({pandoc.RawBlock("typst", "["), block, pandoc.RawBlock("typst", "],")})
    end
    blocks:insert(pandoc.RawBlock("typst", ")"))
    return blocks
  end
  div.attributes["layout-ncol"] = nil
  div.attributes.style = "display:grid;gap:1em;grid-template-columns:repeat(" .. n .. ",1fr)"
  return div
end

local function visible(div)
  local only = div.attributes["when-format"]
  local target = is_typst and "typst" or "revealjs"
  if div.classes:includes("content-visible") and only then return only == target and div.content or {} end
  if div.classes:includes("content-hidden") and only then return only == target and {} or div.content end
end

local function any_div(div) return visible(div) or callout(div) or layout(div) end

return {
  {Meta = authors},
  {Figure = float, Table = float, Para = equation},
  {Cite = reference, Div = any_div},
}
