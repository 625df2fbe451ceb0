// A page of claims alone.

startTheme();
drawPlots();
watchWidth(drawPlots);
