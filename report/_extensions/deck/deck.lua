-- For Quarto and for the built-in renderer alike: columns side by side, small print, and no speaker notes on the page.

local function columns(div)
  local widths, blocks = {}, pandoc.List({})
  for _, block in ipairs(div.content) do
    if block.t == "Div" and block.classes:includes("column") then
      table.insert(widths, ((block.attributes.width or ""):match("^(%d+)%%$") or "1") .. "fr")
      blocks:insert(pandoc.RawBlock("typst", "["))
      blocks:extend(block.content)
      blocks:insert(pandoc.RawBlock("typst", "],"))
    end
  end
  blocks:insert(1, pandoc.RawBlock("typst", "#grid(columns: (" .. table.concat(widths, ", ") .. ",), gutter: 1.2em,"))
  blocks:insert(pandoc.RawBlock("typst", ")"))
  return blocks
end

local function small(div)
  div.content:insert(1, pandoc.RawBlock("typst", "#text(size: 0.78em)["))
  div.content:insert(pandoc.RawBlock("typst", "]"))
  return div.content
end

function Div(div)
  if div.classes:includes("notes") then return {} end
  if div.classes:includes("columns") then return columns(div) end
  if div.classes:includes("small") then return small(div) end
end
