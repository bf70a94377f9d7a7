-- For Quarto and for the built-in renderer alike: what the ACL page needs beyond plain pandoc.
-- `.wide` lets floats span both columns, each by itself, as two together may be taller than a page; `.here` keeps them in the
-- text; the reference list gets hanging indents.

local function wrap(content, open)
  local blocks = pandoc.List({pandoc.RawBlock("typst", open)})
  blocks:extend(content)
  blocks:insert(pandoc.RawBlock("typst", "]"))
  return blocks
end

local function wide(div)
  local blocks = pandoc.List()
  for _, block in ipairs(div.content) do
    blocks:extend(wrap({block}, "#wide["))
  end
  return blocks
end

local function reference_list(div)
  local blocks = pandoc.List({pandoc.RawBlock("typst",
    "#set par(first-line-indent: 0em, hanging-indent: 1em)\n#set text(size: 10pt)\n#set block(spacing: 0.75em)")})
  blocks:extend(div.content)
  return blocks
end

function Div(div)
  if not FORMAT:match("typst") then return nil end
  if div.classes:includes("wide") then return wide(div) end
  if div.classes:includes("here") then return wrap(div.content, "#here[") end
end

-- The list of references exists only after citeproc; Quarto and the built-in renderer both run this filter before it,
-- so the list's look is set at the place where it will stand.
function Pandoc(doc)
  if not FORMAT:match("typst") then return nil end
  for i, block in ipairs(doc.blocks) do
    if block.t == "Div" and block.identifier == "refs" then
      doc.blocks:insert(i, reference_list(pandoc.Div({}))[1])
      return doc
    end
  end
end
