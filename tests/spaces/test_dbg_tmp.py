from tests.spaces.conftest import *
from tests.spaces.test_spaces import draw_seven
def test_x(visit):
    page = visit("vae")
    page.page.on("pageerror", lambda m: print("ERR", m))
    page.open_tab("Your digit")
    page.page.wait_for_timeout(3000)
    print(page.page.evaluate("[...document.querySelectorAll('#pad canvas')].map(c=>[c.className,c.getBoundingClientRect().toJSON(), c.width,c.height])"))
    page.page.screenshot(path="/tmp/spaceskit/pad0.png", full_page=True)
    draw_seven(page)
    page.page.wait_for_timeout(1500)
    page.page.screenshot(path="/tmp/spaceskit/pad1.png", full_page=True)
    page.page.get_by_role("button", name="Redraw it").click()
    page.page.wait_for_timeout(5000)
    page.page.screenshot(path="/tmp/spaceskit/pad2.png", full_page=True)
    print(page.requests[-5:])
