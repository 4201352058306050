"""Panels of the page about runs."""

from __future__ import annotations

import io

import pytest

from timm_robust.report.panels import draw_panels, panels_of


def test_labels_of_the_pictures_do_not_overlap(overfitted):
    """Names at the right ends, titles, "best": all texts of all panels, by their boxes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found, save = [], Figure.savefig

    def kept(self, *arguments, **settings):
        save(self, *arguments, **settings)
        renderer = FigureCanvasAgg(self).get_renderer()
        for axes in self.axes:
            texts = [*axes.texts, axes._left_title, axes.xaxis.label]
            found.extend((text.get_text(), text.get_window_extent(renderer), self.bbox) for text in texts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", kept)
        many = {f"a rather long name {i}": [(1, 0.5), (2, 0.5)] for i in range(20)}
        one = panels_of(overfitted[1].history)
        for panels in (one, [type(one[0])("many", many)]):
            found.clear()
            draw_panels(panels, io.BytesIO(), format="png")
            assert len(found) > 20
            for number, (name, box, page) in enumerate(found):
                assert box.x0 >= 0 and box.x1 <= page.x1 and box.y0 >= 0 and box.y1 <= page.y1, name
                for other, place, _ in found[:number]:
                    assert not box.overlaps(place), (name, other)
